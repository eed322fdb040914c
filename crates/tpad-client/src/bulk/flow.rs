//! Flow control of what is received.

/// What the daemon may still send, of a stream or of the connection.
#[derive(Debug)]
pub(super) struct Window {
    size: u32,
    left: u32,
    /// Taken and not given back yet.
    taken: u32,
}

/// More came than was allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Window {
    pub(super) fn new(size: u32) -> Self {
        Self { size, left: size, taken: 0 }
    }

    /// Counts bytes that are about to come.
    pub(super) fn receive(&mut self, bytes: usize) -> Result<(), Overrun> {
        let bytes = u32::try_from(bytes).map_err(|_| Overrun)?;
        self.left = self.left.checked_sub(bytes).ok_or(Overrun)?;
        Ok(())
    }

    /// Counts bytes that came and were taken; by how much the window is to be
    /// raised now, if it is.
    ///
    /// At half of the window the sender never waits for us, and we speak seldom.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u32> {
        // What was received fits in the window, which is a u32.
        self.taken = self.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken < self.size / 2 {
            return None;
        }
        let taken = std::mem::take(&mut self.taken);
        self.left = self.left.saturating_add(taken);
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::LARGEST_WINDOW;
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_at_half_of_the_window() {
        let mut window = Window::new(100);
        assert_eq!(window.receive(100), Ok(()));
        assert_eq!(window.receive(1), Err(Overrun));
        assert_eq!(window.take(49), None);
        assert_eq!(window.take(1), Some(50));
        assert_eq!(window.receive(51), Err(Overrun));
        assert_eq!(window.receive(50), Ok(()));
        assert_eq!(window.receive(usize::MAX), Err(Overrun));
    }

    #[test]
    fn the_largest_window_is_raised_long_before_it_is_used_up() {
        let mut window = Window::new(LARGEST_WINDOW);
        let (mut came, mut raised) = (0u64, 0u64);
        // Three times the largest window.
        for _ in 0..1536 {
            assert_eq!(window.receive(4 << 20), Ok(()));
            came += 4 << 20;
            raised += window.take(4 << 20).map_or(0, u64::from);
            assert!(came - raised <= u64::from(LARGEST_WINDOW / 2), "{came} {raised}");
        }
        assert!(raised > 2 * u64::from(LARGEST_WINDOW), "{raised}");
    }
}
