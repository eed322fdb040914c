//! What a driver says when it does not do what it was asked.

use crate::DeviceName;

/// There is no driver, or it has nothing to drive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why, for an operator.
    pub reason: String,
}

/// A call of the driver failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver refused a call or reported what went wrong before it.
    #[error("{call}: {name} ({code})")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// Its result.
        code: u32,
        /// The result's name.
        name: String,
    },
    /// There is no such device.
    #[error("there is no device {device}; there are {there}")]
    NoDevice {
        /// What was asked for.
        device: DeviceName,
        /// What there is.
        there: String,
    },
    /// The device cannot hand memory to other processes.
    #[error("device {index} cannot export memory as a file descriptor")]
    NoExport {
        /// Its index.
        index: u32,
    },
    /// The system refused something that the driver needs.
    #[error("{what}: {problem}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its error.
        problem: String,
    },
    /// A span lies outside of its memory, or is empty.
    #[error("bytes {offset}..+{bytes} lie outside of memory of {of} bytes")]
    Span {
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        bytes: u64,
        /// Those of the memory.
        of: u64,
    },
    /// Memory that is mapped to be read was written to.
    #[error("the memory is mapped read-only")]
    ReadOnly,
    /// The queue of copies is full.
    #[error("too many copies wait")]
    Busy,
    /// The driver does not say whether a copy is over: what it reads and writes can be used
    /// for nothing else.
    #[error("a copy was not seen to end: {0}")]
    Unseen(Box<CudaError>),
    /// The copier or stream has ended.
    #[error("copying has ended")]
    Ended,
}

/// What can be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CudaErrorKind {
    /// The device has no memory left for it: others may give some back.
    OutOfMemory,
    /// The context is dead: every later call fails, until the process is restarted.
    Sticky,
    /// This call was refused; others may work.
    Refused,
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(crate) const OUT_OF_MEMORY: u32 = 2;

/// Results after which nothing in the context works any more, by the documentation of
/// `CUresult` ("the process must be terminated and relaunched"), with those that say that
/// the device or the context is gone. Of an unknown error nothing is known: it counts.
const STICKY: &[u32] = &[
    4,   // DEINITIALIZED
    214, // ECC_UNCORRECTABLE
    220, // NVLINK_UNCORRECTABLE
    226, // CONTAINED
    700, // ILLEGAL_ADDRESS
    702, // LAUNCH_TIMEOUT
    709, // CONTEXT_IS_DESTROYED
    710, // ASSERT
    714, // HARDWARE_STACK_ERROR
    715, // ILLEGAL_INSTRUCTION
    716, // MISALIGNED_ADDRESS
    717, // INVALID_ADDRESS_SPACE
    718, // INVALID_PC
    719, // LAUNCH_FAILED
    721, // TENSOR_MEMORY_LEAK
    806, // MPS_RPC_FAILURE
    810, // MPS_CLIENT_TERMINATED
    911, // EXTERNAL_DEVICE
    999, // UNKNOWN
];

impl CudaError {
    /// What can be done about it.
    #[must_use]
    pub fn kind(&self) -> CudaErrorKind {
        match self {
            Self::Call { code: OUT_OF_MEMORY, .. } => CudaErrorKind::OutOfMemory,
            Self::Call { code, .. } if STICKY.contains(code) => CudaErrorKind::Sticky,
            Self::Unseen(_) => CudaErrorKind::Sticky,
            _ => CudaErrorKind::Refused,
        }
    }

    /// Whether the context is dead.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        self.kind() == CudaErrorKind::Sticky
    }

    /// Of a copy that was begun, whose end this error kept from being seen.
    pub(crate) fn unseen(self) -> Self {
        if self.is_sticky() { self } else { Self::Unseen(Box::new(self)) }
    }

    pub(crate) fn system(what: &'static str, error: impl std::fmt::Display) -> Self {
        Self::System { what, problem: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(code: u32) -> CudaError {
        CudaError::Call { call: "cuSomething", code, name: "NAME".to_owned() }
    }

    #[test]
    fn errors_are_sorted_by_what_is_left_to_do() {
        assert_eq!(call(2).kind(), CudaErrorKind::OutOfMemory);
        for code in [700, 719, 214, 999] {
            assert!(call(code).is_sticky(), "{code}");
        }
        for code in [1, 201, 400, 500, 600, 801, 900] {
            assert_eq!(call(code).kind(), CudaErrorKind::Refused, "{code}");
        }
        assert_eq!(CudaError::Busy.kind(), CudaErrorKind::Refused);
        assert!(
            call(400).unseen().is_sticky() && matches!(call(700).unseen(), CudaError::Call { .. })
        );
        assert_eq!(call(700).to_string(), "cuSomething: NAME (700)");
    }
}
