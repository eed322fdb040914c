//! A generation's blocks in pages.

use std::fmt;
use std::str::FromStr;

use tokio::time::Instant;
use tpad_manifest::{BlockKey, BlockRecord, TierId};

use super::Generation;
use super::index::{IndexNumber, SharedSegment};
use crate::EngineError;

/// What to list, and from where.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// This tier's experts and routers alone; `None` lists everything.
    pub tier: Option<TierId>,
    /// The token of the page before.
    pub token: Option<String>,
    /// At most this many blocks.
    pub blocks: usize,
}

/// A block without its bytes.
#[derive(Clone, Debug)]
pub struct ListedBlock {
    /// What it is asked for by.
    pub key: BlockKey,
    /// What it is.
    pub record: BlockRecord,
}

/// Blocks, and where to go on.
#[derive(Clone, Debug)]
pub struct Page {
    /// Experts by layer, group and number, then the layer's router; tiers in
    /// manifest order; dense tensors last.
    pub blocks: Vec<ListedBlock>,
    /// The token of the page after the `n`th block of this one, at `n`: a
    /// caller that cannot carry the whole page hands out a part of it.
    next: Vec<Token>,
}

impl Page {
    /// The token of what follows the page's first `blocks` blocks; `None` at
    /// the end of the list.
    #[must_use]
    pub fn token_after(&self, blocks: usize) -> Option<String> {
        self.next.get(blocks).map(Token::to_string)
    }
}

/// Where a list goes on: opaque to clients, bound to one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    generation: u64,
    /// Tells the generations of one daemon from those of another, and what was
    /// asked for.
    check: u64,
    at: Cursor,
}

/// A place in the order of blocks: index, segment of it, block of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    index: usize,
    segment: usize,
    block: u64,
}

impl Generation {
    /// A page of blocks. Has no effect on the caches of blocks.
    ///
    /// # Errors
    /// When the tier is unknown or not served, the token is of another request
    /// or generation, or a segment cannot be read.
    pub async fn page(
        &self,
        request: &PageRequest,
        deadline: Instant,
    ) -> Result<Page, EngineError> {
        let indexes = self.listed(request.tier.as_ref())?;
        let check = self.check_of(request.tier.as_ref());
        let mut at = match &request.token {
            None => Cursor::default(),
            Some(text) => {
                let token: Token = text.parse().map_err(|()| EngineError::PageToken)?;
                if token.generation != self.number() {
                    let (found, current) = (token.generation, self.number());
                    return Err(EngineError::StalePage { found, current });
                }
                if token.check != check {
                    return Err(EngineError::PageToken);
                }
                token.at
            }
        };
        let token = |at| Token { generation: self.number(), check, at };
        let mut page = Page { blocks: Vec::new(), next: Vec::new() };
        let mut open: Option<(usize, usize, SharedSegment)> = None;
        while let Some(number) = indexes.get(at.index).copied() {
            let entries = self.index(number).map_or(&[][..], |index| index.segments());
            let Some(entry) = entries.get(at.segment) else {
                at = Cursor { index: at.index + 1, ..Cursor::default() };
                continue;
            };
            let segment = match &open {
                Some((index, place, segment)) if (*index, *place) == (at.index, at.segment) => {
                    segment
                }
                _ => {
                    let segment = self.segment(number, at.segment, deadline).await?;
                    &open.insert((at.index, at.segment, segment)).2
                }
            };
            let Some(block) = self.nth(number, entry.layer, segment, at.block) else {
                at = Cursor { index: at.index, segment: at.segment + 1, block: 0 };
                continue;
            };
            page.next.push(token(at));
            if page.blocks.len() >= request.blocks {
                break;
            }
            page.blocks.push(block);
            at.block += 1;
        }
        Ok(page)
    }

    /// The indexes that a list walks through.
    fn listed(&self, tier: Option<&TierId>) -> Result<Vec<IndexNumber>, EngineError> {
        if let Some(tier) = tier {
            return Ok(vec![IndexNumber::Tier(self.tier(tier)?)]);
        }
        let tiers = (0..).zip(&self.tiers).filter(|(_, index)| index.is_some());
        let tiers = tiers.map(|(n, _)| IndexNumber::Tier(n));
        Ok(tiers.chain(self.dense.as_ref().map(|_| IndexNumber::Dense)).collect())
    }

    fn nth(
        &self,
        number: IndexNumber,
        layer: u32,
        segment: &SharedSegment,
        block: u64,
    ) -> Option<ListedBlock> {
        let IndexNumber::Tier(tier) = number else {
            let record = segment.dense_record(usize::try_from(block).ok()?)?;
            let name = record.tensors.first()?.name.clone();
            return Some(ListedBlock { key: BlockKey::Dense { name }, record });
        };
        let mut left = block;
        for (run, group) in segment.groups().iter().zip(0..) {
            if let Ok(expert) = u32::try_from(left)
                && expert < run.experts
            {
                let key = self.expert_key(tier, group, expert, layer);
                return Some(ListedBlock { key, record: segment.expert(group, expert)? });
            }
            left -= u64::from(run.experts);
        }
        let record = if left == 0 { segment.router()? } else { return None };
        let key = BlockKey::Router { tier: self.tier_id(tier).clone(), layer };
        Some(ListedBlock { key, record })
    }

    /// Two daemons count generations alike: the document tells them apart.
    fn check_of(&self, tier: Option<&TierId>) -> u64 {
        let tier = tier.map(ToString::to_string).unwrap_or_default();
        let bound = format!("{} {} {tier}", self.model(), self.document);
        let digest = tpad_manifest::Digest::of(bound.as_bytes());
        let (first, _) = digest.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
        u64::from_le_bytes(*first)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cursor { index, segment, block } = self.at;
        write!(f, "{:x}-{:016x}-{index:x}-{segment:x}-{block:x}", self.generation, self.check)
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-').map(|part| u64::from_str_radix(part, 16).map_err(|_| ()));
        let mut part = || parts.next().ok_or(())?;
        let (generation, check) = (part()?, part()?);
        let place = |part: u64| usize::try_from(part).map_err(|_| ());
        let at = Cursor { index: place(part()?)?, segment: place(part()?)?, block: part()? };
        let token = Self { generation, check, at };
        // One spelling each: what we did not write ourselves is refused.
        if token.to_string() == text { Ok(token) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_others_are_refused() {
        let at = Cursor { index: 1, segment: 70, block: 12345 };
        let token = Token { generation: 9, check: 0xabc, at };
        assert_eq!(token.to_string().parse(), Ok(token));
        for text in ["", "9", "9-abc-1-46-3039", "+9-0000000000000abc-1-46-3039", "x-y-z"] {
            assert_eq!(text.parse::<Token>(), Err(()), "{text}");
        }
    }
}
