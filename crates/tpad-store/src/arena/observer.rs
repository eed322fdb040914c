//! Who wants to know of the arena's memory: a driver that reads it by other ways than
//! this process's own.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;

/// Is told of every slab that is mapped from then on: see [`Arena::observe`](super::Arena::observe).
pub trait SlabObserver: Send + Sync + fmt::Debug + 'static {
    /// `bytes` bytes from `start` are mapped and populated. They stay so until what is
    /// returned was dropped: that happens right before they are unmapped. Called on the
    /// thread that maps, which may block.
    fn mapped(&self, start: NonNull<u8>, bytes: usize) -> Box<dyn Any + Send + Sync>;
}
