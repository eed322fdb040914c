//! Expert lists: `"0-3,7"`.

use std::str::FromStr;

/// Experts in the order in which a plan names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExpertList(Vec<(u32, u32)>);

impl FromStr for ExpertList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut runs = Vec::new();
        for entry in text.split(',') {
            let entry = entry.trim();
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            let number = |text: &str| {
                let plain = text.trim().bytes().all(|b| b.is_ascii_digit());
                plain.then(|| text.trim().parse::<u32>().ok()).flatten()
            };
            match number(first).zip(number(last)) {
                Some((first, last)) if first <= last => runs.push((first, last)),
                Some((first, last)) => return Err(format!("{first}-{last} runs backwards")),
                None => {
                    return Err(format!(
                        "{entry:?} is no expert, such as 7, and no range, such as 0-3"
                    ));
                }
            }
        }
        Ok(Self(runs))
    }
}

impl ExpertList {
    /// How many experts the list names.
    pub(crate) fn len(&self) -> u64 {
        let lengths = self.0.iter().map(|(first, last)| u64::from(last - first) + 1);
        lengths.fold(0, u64::saturating_add)
    }

    /// The highest number that the list names.
    pub(crate) fn highest(&self) -> Option<u32> {
        self.0.iter().map(|(_, last)| *last).max()
    }

    /// Every expert. The caller has bounded the list's length.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }
}

/// Sorted numbers as people write them: `0-3, 7`.
pub(crate) fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let run = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order() {
        let list: ExpertList = "7, 0-3,5".parse().expect("a list");
        assert_eq!(list.iter().collect::<Vec<_>>(), [7, 0, 1, 2, 3, 5]);
        assert_eq!((list.len(), list.highest()), (6, Some(7)));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "a", "1,", "3-1", "-1", "1-", "+1", "1-2-3", "4294967296"] {
            assert!(text.parse::<ExpertList>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_list_of_all_numbers_is_counted_and_not_walked() {
        let list: ExpertList = "0-4294967295".parse().expect("a list");
        assert_eq!(list.len(), 1 << 32);
    }

    #[test]
    fn ranges_are_written_as_people_do() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[]), "");
    }
}
