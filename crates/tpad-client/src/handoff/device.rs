//! Blocks in the memory of a GPU, as long as they are held.

mod arrival;
mod expected;
mod slabs;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tpad_cuda::{CudaError, Memory};
use tpad_manifest::{BlockId, BlockKey, Dtype, GateUp, Orientation, Role, Source};

pub(super) use self::arrival::Arrival;
pub(super) use self::slabs::{DeviceSlab, DeviceSlabs, Mapped};
use super::directories::Cell;
use super::held::lies_within;
use super::link::{Answer, Lease};
use super::{AcquireOptions, Acquired, Handoff, as_asked};
use crate::{Error, Gpu, PlacedBlock};

/// What an acquire on a GPU came to.
pub type AcquiredOn = Acquired<HeldDeviceBlock>;

/// A block in a GPU's memory, where the daemon keeps it: mapped into this process to be
/// read. Clones hold it together.
///
/// The last that is dropped gives it back, but not before all work that this process has
/// submitted to the device by then has completed: a kernel that was launched while the
/// block was held reads what it was to read. Dropping does not wait for that. Two things
/// are left to whoever holds it:
///
/// - A captured graph launches its kernels again and again: hold the block for the graph's
///   life.
/// - While a stream of the context is being captured, drop no block: CUDA ends the capture
///   with an error when it is asked what was submitted.
///
/// What it borrows out cannot outlive it. An address is a number and can: it means nothing
/// once the last clone is dropped, and the memory there may be another block's, or nobody's.
///
/// ```compile_fail,E0505
/// fn first(block: tpad_client::HeldDeviceBlock) -> Option<u64> {
///     let tensor = block.tensors().next()?;
///     drop(block);
///     Some(tensor.address)
/// }
/// ```
///
/// CUDA does not survive `fork`: a forked child can do nothing with it but drop it, which
/// changes nothing.
#[derive(Clone)]
pub struct HeldDeviceBlock(Arc<Inner>);

struct Inner {
    block: Arc<PlacedBlock>,
    /// Where its slot begins in the slab.
    start: usize,
    kept: Arc<Kept>,
    gpu: Gpu,
}

/// What is given up together, when the device's work is done.
struct Kept {
    // First: a slab that is forgotten has no leases, as the daemon counts them.
    _guard: Guard,
    mapped: Arc<Mapped>,
}

/// Where a block lies that a cell names.
pub(super) struct OnSlab {
    pub(super) start: usize,
    pub(super) mapped: Arc<Mapped>,
    pub(super) cell: Cell,
}

/// What keeps a slot as it is.
#[expect(dead_code, reason = "a guard is there to be dropped")]
enum Guard {
    /// The daemon's word.
    Lease(Lease),
    /// This worker's own.
    Cell(Cell),
}

/// One tensor of a block in a GPU's memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTensor<'a> {
    /// The name in the checkpoint it came from. Experts cut from one stacked tensor share
    /// its name.
    pub name: &'a str,
    /// The element type.
    pub dtype: &'a Dtype,
    /// Stored elements in each dimension, the slowest first.
    pub shape: &'a [u64],
    /// What the tensor is for.
    pub role: Role,
    /// Which axis is which.
    pub orientation: Orientation,
    /// How gate and up share a fused tensor.
    pub gate_up: GateUp,
    /// Logical values in one stored element.
    pub values_per_element: u32,
    /// Whether this is one expert's slice of a stacked tensor.
    pub sliced: bool,
    /// Where its elements begin, as kernels see it: a device pointer, on a 256-byte
    /// boundary. They lie row by row, as [`Tensor::bytes`](crate::Tensor::bytes) has them.
    pub address: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Handoff {
    /// Acquires blocks of a model in the memory of a GPU: each is brought there if it is
    /// not, and leased as by [`Handoff::acquire`]. Where all of them can be held as by
    /// [`Handoff::hold_on`], they are, and the daemon is not asked. Dropped, the future
    /// leaves no lease behind.
    ///
    /// What cannot be had on the device can be had in host memory: fall back to
    /// [`Handoff::acquire`] when this fails, or one of its blocks does, for another reason
    /// than the key.
    ///
    /// ```no_run
    /// use tpad_client::{AcquireOptions, Gpu, Handoff};
    /// use tpad_manifest::{BlockKey, ExpertKey};
    ///
    /// # fn launch(_address: u64, _bytes: u64) {}
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let gpu = Gpu::open("0")?;
    /// let handoff = Handoff::connect("unix:///run/tpad/tpad.sock").await?;
    /// let key = ExpertKey { tier: "tier_1b".parse()?, group: 0, expert: 3 };
    /// let keys = [BlockKey::Expert { key, layer: 5 }];
    /// let acquired = handoff.acquire_on(&gpu, "demo", &keys, AcquireOptions::default()).await?;
    /// for block in acquired.blocks {
    ///     let block = block?;
    ///     for tensor in block.tensors() {
    ///         launch(tensor.address, tensor.bytes);
    ///     }
    ///     // The lease ends when what was launched is done.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When nothing is acquired: [`Error::NotHandedOver`] where the daemon hands over no
    /// memory of this GPU; [`Error::Gpu`] when it cannot be mapped into this process;
    /// [`Error::Refused`], with [`Kind::ResourceExhausted`](crate::Kind) when the leases
    /// would exceed a bound; [`Error::Disconnected`]; [`Error::TooManyKeys`].
    pub async fn acquire_on(
        &self,
        gpu: &Gpu,
        model: &str,
        keys: &[BlockKey],
        options: AcquireOptions,
    ) -> Result<AcquiredOn, Error> {
        self.admit(keys)?;
        let generation = options.generation;
        // All or none: nothing is held while others are waited for.
        if let Some(held) =
            self.ground().and_then(|by| self.directories.hold_on(by, gpu, model, keys, generation))
        {
            return Ok(held);
        }
        if !self.devices.iter().any(|device| device == gpu.uuid()) {
            let there = match &*self.devices {
                [] => "no GPU".to_owned(),
                devices => devices.join(", "),
            };
            return Err(Error::NotHandedOver { gpu: gpu.uuid().to_owned(), there });
        }
        let to = |answer| Answer::Device(gpu.clone(), answer);
        let acquired = self.ask(model, keys, options, to).await?;
        as_asked(acquired, keys, HeldDeviceBlock::key)
    }
}

impl Handoff {
    /// A block that lies in the memory of a GPU and that this handle or a clone of it has
    /// acquired there before: found and held without a message, in well under a
    /// microsecond, however large it is. `None` when it is to be acquired, as for
    /// [`Handoff::hold`].
    #[must_use]
    pub fn hold_on(&self, gpu: &Gpu, model: &str, key: &BlockKey) -> Option<HeldDeviceBlock> {
        self.directories.hold_one_on(self.ground()?, gpu, model, key)
    }

    /// All of these blocks as by [`Handoff::hold_on`], or nothing.
    #[must_use]
    pub fn hold_all_on(
        &self,
        gpu: &Gpu,
        model: &str,
        keys: &[BlockKey],
    ) -> Option<Vec<HeldDeviceBlock>> {
        let held = self.directories.hold_on(self.ground()?, gpu, model, keys, None)?;
        held.blocks.into_iter().map(Result::ok).collect()
    }
}

impl HeldDeviceBlock {
    /// The block, whose image begins at `start` of a slab that is mapped and lies within it
    /// with all its tensors; `None` if it does not.
    fn new(
        gpu: &Gpu,
        block: Arc<PlacedBlock>,
        start: usize,
        mapped: Arc<Mapped>,
        guard: Guard,
    ) -> Option<Self> {
        let slab_bytes = usize::try_from(mapped.bytes()).unwrap_or(usize::MAX);
        lies_within(&block, start, slab_bytes).then(|| {
            let kept = Arc::new(Kept { _guard: guard, mapped });
            Self(Arc::new(Inner { block, start, kept, gpu: gpu.clone() }))
        })
    }

    /// A block that is held by a cell.
    pub(super) fn by_cell(gpu: &Gpu, block: Arc<PlacedBlock>, there: OnSlab) -> Option<Self> {
        let OnSlab { start, mapped, cell } = there;
        Self::new(gpu, block, start, mapped, Guard::Cell(cell))
    }

    /// What it is.
    #[must_use]
    pub fn key(&self) -> &BlockKey {
        &self.0.block.key
    }

    /// The BLAKE3 digest of the image, which the daemon has checked before it copied it.
    #[must_use]
    pub fn id(&self) -> &BlockId {
        &self.0.block.id
    }

    /// The expert's number and router column in the checkpoint it came from; `None` for
    /// routers and dense tensors.
    #[must_use]
    pub fn source(&self) -> Option<Source> {
        self.0.block.source
    }

    /// The device that it is on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// Where the image begins, as kernels see it: a device pointer, on a 4096-byte
    /// boundary. The image is the tensors, each on a 256-byte boundary, zero padded.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address_of(&self.0.block.image)
    }

    /// The image's bytes.
    #[must_use]
    pub fn image_bytes(&self) -> usize {
        self.0.block.image.len()
    }

    /// The tensors, in image order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = DeviceTensor<'_>> {
        self.0.block.tensors.iter().map(|tensor| DeviceTensor {
            name: &tensor.name,
            dtype: &tensor.dtype,
            shape: &tensor.shape,
            role: tensor.role,
            orientation: tensor.orientation,
            gate_up: tensor.gate_up,
            values_per_element: tensor.values_per_element,
            sliced: tensor.sliced,
            address: self.address_of(&tensor.bytes),
            bytes: tensor.bytes.len() as u64,
        })
    }

    /// Copies bytes of the image to the host. Blocks the thread; slow, for checks.
    ///
    /// # Errors
    /// [`Error::Gpu`], with [`Kind::InvalidArgument`](crate::Kind) when they lie outside of
    /// the image.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<u8>, Error> {
        let Inner { block, kept, gpu, .. } = &*self.0;
        let image = block.image.len();
        if range.start > range.end || range.end > image {
            let (offset, bytes) = (range.start as u64, range.len() as u64);
            return Err(gpu.failed(CudaError::Span { offset, bytes, of: image as u64 }));
        }
        let mut there = vec![0; range.len()];
        if !there.is_empty() {
            let offset = self.0.offset_of(&block.image) + range.start as u64;
            kept.mapped.memory().read(offset, &mut there).map_err(|error| gpu.failed(error))?;
        }
        Ok(there)
    }

    /// The memory that the image lies in and where in it, for tests that submit work to the
    /// device. What is kept of it keeps the slab mapped, and nothing more.
    #[doc(hidden)]
    #[must_use]
    pub fn memory(&self) -> (&Arc<dyn Memory>, u64) {
        (self.0.kept.mapped.memory(), self.0.offset_of(&self.0.block.image))
    }

    fn address_of(&self, range: &Range<usize>) -> u64 {
        // Within the mapping, so within the address space.
        self.0.kept.mapped.memory().address() + self.0.offset_of(range)
    }
}

impl Inner {
    /// Of a range of the block in its slab, in which all of it lies.
    fn offset_of(&self, range: &Range<usize>) -> u64 {
        (self.start + range.start) as u64
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Two hold it now: the reaper until the work is done, and this until the end of
        // this function. Whichever is last, it goes after both.
        self.gpu.give_up(Arc::clone(&self.kept));
    }
}

impl fmt::Debug for HeldDeviceBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { block, gpu, .. } = &*self.0;
        let PlacedBlock { key, id, image, .. } = &**block;
        let mut held = f.debug_struct("HeldDeviceBlock");
        held.field("key", key).field("id", id).field("bytes", &image.len());
        held.field("gpu", &gpu.uuid()).finish_non_exhaustive()
    }
}
