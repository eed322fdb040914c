//! Completeness: what one expert has, its siblings have.

use std::collections::{BTreeMap, BTreeSet};

use tpad_manifest::{LayerKind, Projection};

use super::LayoutError;
use super::expert::place;
use super::linear::Linear;
use super::member::Member;
use super::name::{Form, is_gated, partner, renumber};
use super::site::Site;

/// Weights that are stored alike; MTP layers are often stored otherwise.
type Kind<'a> = (bool, u8, Form, Member, &'a str);

/// A companion that some weight of a kind has, and one that has it.
type Companions<'a> = BTreeMap<Member, &'a str>;

/// Refuses experts without a map or companion that their siblings have.
pub(super) fn check(sites: &[Site<'_>]) -> Result<(), LayoutError> {
    for site in sites {
        check_maps(site)?;
    }
    check_companions(sites)
}

/// Every expert of a site has the same maps, and these make an expert.
fn check_maps(site: &Site<'_>) -> Result<(), LayoutError> {
    let mut known: BTreeMap<u8, (Option<u32>, &Linear<'_>)> = BTreeMap::new();
    for (expert, linears) in &site.experts {
        for linear in linears {
            let seen = known.entry(place(linear.projection)).or_insert((*expert, linear));
            if seen.1.weight().is_none() && linear.weight().is_some() {
                *seen = (*expert, linear);
            }
        }
    }
    let has = |projection| known.contains_key(&place(projection));
    let first = known.values().next().map(|(_, linear)| *linear);
    for wanted in [Projection::Gate, Projection::Up, Projection::Down] {
        let optional = match wanted {
            Projection::Gate => !known.values().any(|(_, linear)| is_gated(linear.stem)),
            Projection::Up => has(Projection::GateUp),
            _ => false,
        };
        let Some(first) = first.filter(|_| !optional && !has(wanted)) else { continue };
        let Some(piece) = first.pieces.first() else { continue };
        return Err(LayoutError::Missing {
            layer: site.layer,
            name: partner(first.stem, &piece.tensor.name, wanted, site.form),
            why: format!("{} is there", piece.tensor.name),
        });
    }
    if has(Projection::GateUp) && (has(Projection::Gate) || has(Projection::Up)) {
        let stem = |(_, linear): &(_, &Linear<'_>)| linear.stem.to_string();
        let mut stems = known.values().map(stem);
        let (first, second) = (stems.next().unwrap_or_default(), stems.next().unwrap_or_default());
        return Err(LayoutError::TwoTensors { first, second });
    }
    for (expert, linears) in &site.experts {
        for (place_of, (other, model)) in &known {
            let linear = linears.iter().find(|linear| place(linear.projection) == *place_of);
            if linear.is_some_and(|linear| linear.weight().is_some()) {
                continue;
            }
            let (name, why) = match (model.weight(), linear) {
                (Some(weight), _) => (rename(&weight.tensor.name, *other, *expert), weight),
                (None, Some(linear)) => {
                    // No expert has this weight: another map's tells its kind.
                    let mut weights = known.values().filter_map(|(_, linear)| linear.weight());
                    let (Some(weight), Some(sibling)) = (weights.next(), linear.pieces.first())
                    else {
                        continue;
                    };
                    (weight.member.beside(linear.stem, &sibling.tensor.name), sibling)
                }
                (None, None) => continue,
            };
            let why = format!("{} is there", why.tensor.name);
            return Err(LayoutError::Missing { layer: site.layer, name, why });
        }
    }
    Ok(())
}

/// The name of one expert's tensor as another expert's.
fn rename(tensor: &str, from: Option<u32>, to: Option<u32>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => renumber(tensor, from, to),
        _ => tensor.to_string(),
    }
}

/// Weights that are stored alike have the same companions.
fn check_companions(sites: &[Site<'_>]) -> Result<(), LayoutError> {
    let mut kinds: BTreeMap<Kind<'_>, Companions<'_>> = BTreeMap::new();
    for_each(sites, |_, kind, linear| {
        let companions = kinds.entry(kind).or_default();
        for piece in &linear.pieces {
            companions.entry(piece.member).or_insert(&piece.tensor.name);
        }
        Ok(())
    })?;
    for_each(sites, |site, kind, linear| {
        let have: BTreeSet<Member> = linear.pieces.iter().map(|piece| piece.member).collect();
        let lacks = kinds.get(&kind).into_iter().flatten().find(|(m, _)| !have.contains(*m));
        match (lacks, linear.weight()) {
            (Some((member, example)), Some(weight)) => Err(LayoutError::Missing {
                layer: site.layer,
                name: member.beside(linear.stem, &weight.tensor.name),
                why: format!("{example} is there"),
            }),
            _ => Ok(()),
        }
    })
}

fn for_each<'s, 'a>(
    sites: &'s [Site<'a>],
    mut visit: impl FnMut(&'s Site<'a>, Kind<'s>, &'s Linear<'a>) -> Result<(), LayoutError>,
) -> Result<(), LayoutError> {
    for site in sites {
        for linear in site.experts.values().flatten() {
            let Some(weight) = linear.weight() else { continue };
            let dtype = weight.tensor.dtype.name();
            visit(
                site,
                (
                    site.kind == LayerKind::Mtp,
                    place(linear.projection),
                    site.form,
                    weight.member,
                    dtype,
                ),
                linear,
            )?;
        }
    }
    Ok(())
}
