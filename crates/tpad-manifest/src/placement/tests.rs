use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn need(tier: &str, placement: Placement, bytes: u64) -> TierNeed {
    TierNeed { tier: tier.into(), placement, bytes, dram: None }
}

fn spread(hbm: u64, dram: u64, nvme: u64, object_store: u64) -> Spread {
    Spread { hbm, dram, nvme, object_store }
}

#[test]
fn tiers_fill_their_home_and_then_what_is_slower() {
    let room = Room { hbm: Some(4), dram: 16, nvme: Some(100) };
    let needs = [
        need("cold", Placement::ObjectStore, 1000),
        need("disk", Placement::Nvme, 50),
        need("warm", Placement::Dram, 20),
        need("hot", Placement::Hbm, 5),
    ];
    let fits = fit(&needs, &room);
    let spreads: Vec<Spread> = fits.iter().map(|fit| fit.spread).collect();
    // The hot tier's last byte takes its place in dram before the warm tier.
    let expected =
        [spread(0, 0, 0, 1000), spread(0, 0, 50, 0), spread(0, 15, 5, 0), spread(4, 1, 0, 0)];
    assert_eq!(spreads, expected);
    assert!(fits.iter().all(|fit| fit.home_reason.is_none() && fit.home == fit.placement));
}

#[test]
fn a_tier_with_a_part_of_its_own_takes_nothing_of_the_others() {
    let room = Room { hbm: None, dram: 10, nvme: Some(100) };
    let own = TierNeed { dram: Some(6), ..need("own", Placement::Hbm, 8) };
    let fits = fit(&[need("rest", Placement::Dram, 12), own], &room);
    assert_eq!(fits[0].spread, spread(0, 10, 2, 0));
    assert_eq!((fits[1].spread, fits[1].offered), (spread(0, 6, 2, 0), Some(6)));
}

#[test]
fn tiers_of_one_name_have_its_part_together() {
    let room = Room { hbm: None, dram: 10, nvme: Some(100) };
    let own = || TierNeed { dram: Some(6), ..need("own", Placement::Dram, 4) };
    let fits = fit(&[own(), own()], &room);
    assert_eq!((fits[0].spread, fits[1].spread), (spread(0, 4, 0, 0), spread(0, 2, 2, 0)));
    assert_eq!(fits[1].offered, Some(2));
}

#[test]
fn a_spread_of_what_images_take_is_one_of_the_images() {
    let whole = spread(0, 1100, 0, 0).of_images(1000, 1100);
    assert_eq!(whole, spread(0, 1000, 0, 0));
    assert_eq!(spread(0, 550, 275, 275).of_images(999, 1100), spread(0, 499, 249, 251));
    assert_eq!(Spread::default().of_images(0, 0), Spread::default());
    let most = spread(u64::MAX, 0, 0, 0).of_images(u64::MAX, u64::MAX);
    assert_eq!(most, spread(u64::MAX, 0, 0, 0));
}

#[test]
fn media_that_are_not_there_have_a_reason() {
    let room = Room { hbm: None, dram: 10, nvme: None };
    let needs = [need("hot", Placement::Hbm, 4), need("disk", Placement::Nvme, 5)];
    let fits = fit(&needs, &room);
    assert_eq!((fits[0].home, fits[0].spread), (Placement::Dram, spread(0, 4, 0, 0)));
    assert_eq!(fits[0].home_reason, Some("no GPU: served from dram"));
    assert_eq!((fits[1].home, fits[1].spread), (Placement::ObjectStore, spread(0, 0, 0, 5)));
    assert_eq!(fits[1].home_reason, Some("no nvme level: fetched on demand"));
    assert!(fits.iter().all(|fit| fit.warning().is_none()));
}

#[test]
fn what_does_not_fit_is_a_line_with_the_numbers() {
    let needs = [need("tier_10b", Placement::Dram, 19 * GIB + GIB * 8 / 10 + 1)];
    let on_disk = Room { hbm: None, dram: 16 * GIB, nvme: Some(1000 * GIB) };
    let warning = fit(&needs, &on_disk)[0].warning();
    let expected = "tier tier_10b is 19.8 GiB, dram has 16.0 GiB for it: 3.8 GiB stays on nvme";
    assert_eq!(warning.as_deref(), Some(expected));
    let no_disk = Room { nvme: None, ..on_disk };
    let warning = fit(&needs, &no_disk)[0].warning().expect("it does not fit");
    assert!(warning.ends_with(": 3.8 GiB is fetched on demand"), "{warning}");
    let small_disk = Room { nvme: Some(GIB), ..on_disk };
    let warning = fit(&needs, &small_disk)[0].warning().expect("it does not fit");
    assert!(
        warning.ends_with(": 1.0 GiB stays on nvme, 2.8 GiB is fetched on demand"),
        "{warning}"
    );
    let large = Room { dram: 20 * GIB, ..on_disk };
    assert_eq!(fit(&needs, &large)[0].warning(), None);
}

#[test]
fn less_than_one_token_is_a_line_with_both_numbers() {
    assert_eq!(token_cycle_warning(5, 5), None);
    let warning = token_cycle_warning(3 * GIB, 3 * GIB - 1).expect("less");
    assert!(warning.starts_with("dram keeps 2.9 GiB, less than the 3.0 GiB"), "{warning}");
}

fn placements() -> impl Strategy<Value = Placement> {
    prop_oneof![
        Just(Placement::Hbm),
        Just(Placement::Dram),
        Just(Placement::Nvme),
        Just(Placement::ObjectStore)
    ]
}

proptest! {
    /// No medium is promised more than it has, no byte is lost, and room is left
    /// only by tiers that do not want it.
    #[test]
    fn every_byte_has_one_place_within_the_room(
        needs in prop::collection::vec((placements(), any::<u64>()), 0..6),
        hbm in prop::option::of(0u64..1 << 62),
        dram in 0u64..1 << 62,
        nvme in prop::option::of(0u64..1 << 62),
    ) {
        let room = Room { hbm, dram, nvme };
        let needs: Vec<TierNeed> =
            needs.into_iter().map(|(placement, bytes)| need("t", placement, bytes)).collect();
        let fits = fit(&needs, &room);
        prop_assert_eq!(fits.len(), needs.len());
        let sum = |of: fn(&Spread) -> u64| {
            fits.iter().map(|fit| u128::from(of(&fit.spread))).sum::<u128>()
        };
        prop_assert!(sum(|spread| spread.hbm) <= u128::from(hbm.unwrap_or(0)));
        prop_assert!(sum(|spread| spread.dram) <= u128::from(dram));
        prop_assert!(sum(|spread| spread.nvme) <= u128::from(nvme.unwrap_or(0)));
        let nvme_left = u128::from(nvme.unwrap_or(0)) - sum(|spread| spread.nvme);
        for (fit, need) in fits.iter().zip(&needs) {
            let Spread { hbm, dram, nvme, object_store } = fit.spread;
            let all = [hbm, dram, nvme, object_store].into_iter().map(u128::from).sum::<u128>();
            prop_assert_eq!(all, u128::from(need.bytes));
            let wants = fit.home != Placement::ObjectStore;
            prop_assert!(!wants || object_store == 0 || nvme_left == 0, "{:?}", fit);
            prop_assert_eq!(fit.warning().is_some(), fit.offered.is_some_and(|offered| offered < need.bytes));
        }
    }
}
