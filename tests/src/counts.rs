//! What the kernel has counted of a process.

/// Since the process began.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Page faults that needed no disk.
    pub minor_faults: u64,
    /// System calls that read: `read` and `readv`, but not `recv`.
    pub reads: u64,
    /// System calls that wrote: `write` and `writev`, but not `send`.
    pub writes: u64,
    /// Processor time, of all threads.
    pub cpu_seconds: f64,
}

/// The unit of times in `/proc`: USER_HZ is 100 wherever Linux runs this.
const TICKS_PER_SECOND: f64 = 100.0;

impl Counts {
    /// Of a process that runs.
    ///
    /// # Panics
    /// When it does not, or the kernel does not count.
    #[must_use]
    pub fn of(process: u32) -> Self {
        let read = |what: &str| {
            std::fs::read_to_string(format!("/proc/{process}/{what}")).expect("it runs")
        };
        // The name, in parentheses, may hold anything; the third field follows it.
        let stat = read("stat");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| -> u64 { fields[number - 3].parse().expect("a count") };
        let io = read("io");
        let calls = |name: &str| {
            let value = io.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
            value.expect("the kernel counts system calls")
        };
        Self {
            minor_faults: field(10),
            reads: calls("syscr: "),
            writes: calls("syscw: "),
            cpu_seconds: (field(14) + field(15)) as f64 / TICKS_PER_SECOND,
        }
    }
}
