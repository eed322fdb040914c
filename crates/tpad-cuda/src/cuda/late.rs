//! A kernel that reads late, for tests.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::sys::{CUdeviceptr, CUfunction, CUmodule};

use super::call::check;
use super::context::Context;
use super::event::Event;
use super::stream::CudaStream;
use crate::driver::span;
use crate::fault::LateRead;
use crate::{Completion, CudaError, Memory};

/// Waits for `nanos` by the device's clock, then adds up the words, each multiplied by
/// one more than twice its place. Compiled by the driver.
const KERNEL: &CStr = cr"
.version 7.0
.target sm_80
.address_size 64

.visible .entry read_late(
    .param .u64 p_source,
    .param .u64 p_words,
    .param .u64 p_nanos,
    .param .u64 p_sum
)
{
    .reg .pred %p<3>;
    .reg .b32 %r<5>;
    .reg .b64 %d<16>;

    ld.param.u64 %d1, [p_source];
    ld.param.u64 %d2, [p_words];
    ld.param.u64 %d3, [p_nanos];
    ld.param.u64 %d4, [p_sum];
    cvta.to.global.u64 %d1, %d1;
    cvta.to.global.u64 %d4, %d4;

    mov.u64 %d5, %globaltimer;
WAIT:
    mov.u64 %d6, %globaltimer;
    sub.u64 %d7, %d6, %d5;
    setp.lt.u64 %p1, %d7, %d3;
    @%p1 bra WAIT;

    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %nctaid.x;
    cvt.u64.u32 %d8, %r1;
    mul.wide.u32 %d9, %r2, %r3;
    add.u64 %d8, %d8, %d9;
    mul.wide.u32 %d9, %r2, %r4;
    mov.u64 %d10, 0;
READ:
    setp.ge.u64 %p2, %d8, %d2;
    @%p2 bra DONE;
    shl.b64 %d11, %d8, 3;
    add.u64 %d11, %d1, %d11;
    ld.global.u64 %d12, [%d11];
    shl.b64 %d13, %d8, 1;
    add.u64 %d13, %d13, 1;
    mad.lo.u64 %d10, %d12, %d13, %d10;
    add.u64 %d8, %d8, %d9;
    bra READ;
DONE:
    red.global.add.u64 [%d4], %d10;
    ret;
}
";

/// Blocks of the grid and threads of each: all of them fit on any device at once, so
/// that all wait together.
const GRID: (u32, u32) = (64, 256);

#[derive(Debug)]
struct Late {
    // In this order: the event is waited for before anything goes.
    event: Event,
    stream: CudaStream,
    _module: Module,
    sum: Word,
    /// Seen once; kept, since the event may be asked again.
    seen: Mutex<Option<u64>>,
    _memory: Arc<dyn Memory>,
}

#[derive(Debug)]
struct Module {
    context: Arc<Context>,
    raw: CUmodule,
}

// SAFETY: a module may be used by any thread.
unsafe impl Send for Module {}

/// Eight bytes of the device.
#[derive(Debug)]
struct Word {
    context: Arc<Context>,
    address: CUdeviceptr,
}

pub(super) fn launch(
    context: &Arc<Context>,
    memory: &Arc<dyn Memory>,
    offset: u64,
    bytes: u64,
    delay: Duration,
) -> Result<Box<dyn LateRead>, CudaError> {
    span(offset, usize::try_from(bytes).unwrap_or(usize::MAX), memory.bytes())?;
    let module = Module::load(context)?;
    let function = module.function(c"read_late")?;
    let sum = Word::new(context)?;
    let stream = CudaStream::new(context)?;
    stream.write(sum.address, &0u64.to_ne_bytes())?;
    let event = Event::new(context)?;
    let mut source = memory.address() + offset;
    let mut words = bytes / 8;
    let mut nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    let mut address = sum.address;
    let mut parameters = [
        (&raw mut source).cast::<c_void>(),
        (&raw mut words).cast::<c_void>(),
        (&raw mut nanos).cast::<c_void>(),
        (&raw mut address).cast::<c_void>(),
    ];
    let entered = context.enter()?;
    let (blocks, threads) = GRID;
    // SAFETY: the parameters are the kernel's, in order and size, and are copied by the
    // call; the memory that it reads and writes is kept by what is returned.
    let code = unsafe {
        (context.calls.launch_kernel)(
            function,
            blocks,
            1,
            1,
            threads,
            1,
            1,
            0,
            stream.raw(),
            parameters.as_mut_ptr(),
            ptr::null_mut(),
        )
    };
    check("cuLaunchKernel", code)?;
    if let Err(error) = event.record(&entered, stream.raw()) {
        let _over = stream.wait();
        return Err(error);
    }
    drop(entered);
    let memory = Arc::clone(memory);
    let seen = Mutex::default();
    Ok(Box::new(Late { event, stream, _module: module, sum, seen, _memory: memory }))
}

impl Completion for Late {
    fn is_done(&self) -> Result<bool, CudaError> {
        self.event.is_done()
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.event.wait()
    }
}

impl LateRead for Late {
    fn checksum(&self) -> Result<u64, CudaError> {
        self.event.wait()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sum) = *seen {
            return Ok(sum);
        }
        let mut bytes = [0; 8];
        self.stream.read(self.sum.address, &mut bytes)?;
        Ok(*seen.insert(u64::from_ne_bytes(bytes)))
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let _over = self.event.wait();
    }
}

impl Module {
    fn load(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut raw: CUmodule = ptr::null_mut();
        // SAFETY: the image is text that ends with a zero.
        let code = unsafe { (context.calls.module_load)(&raw mut raw, KERNEL.as_ptr().cast()) };
        check("cuModuleLoadData", code)?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    fn function(&self, name: &CStr) -> Result<CUfunction, CudaError> {
        let _entered = self.context.enter()?;
        let mut function: CUfunction = ptr::null_mut();
        // SAFETY: the module is loaded, and the name ends with a zero.
        let code = unsafe {
            (self.context.calls.module_get_function)(&raw mut function, self.raw, name.as_ptr())
        };
        check("cuModuleGetFunction", code)?;
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the module is this one's own, and its kernel is over.
        let _code = unsafe { (self.context.calls.module_unload)(self.raw) };
    }
}

impl Word {
    fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut address: CUdeviceptr = 0;
        // SAFETY: the pointer is to a live address.
        let code = unsafe { (context.calls.mem_alloc)(&raw mut address, 8) };
        check("cuMemAlloc", code)?;
        Ok(Self { context: Arc::clone(context), address })
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the memory is this one's own, and the kernel that writes to it is over.
        let _code = unsafe { (self.context.calls.mem_free)(self.address) };
    }
}
