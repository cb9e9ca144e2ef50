//! Resource usage of this process, from `/proc`.

/// Resource usage of a process.
pub(crate) struct ProcessFigures {
    pub(crate) cpu_seconds: f64,
    pub(crate) start_time_seconds: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) virtual_bytes: u64,
    pub(crate) open_fds: u64,
    pub(crate) max_fds: u64,
}

/// Clock ticks per second in `/proc` (`USER_HZ`). Linux uses this value on all common platforms,
/// independent of the frequency of the kernel's own timer.
const TICKS_PER_SECOND: f64 = 100.0;
/// Size of a memory page. It is needed only if `/proc/self/status` has no `VmRSS`.
const PAGE_BYTES: u64 = 4096;

/// Reads the resource usage of this process. Returns `None` if the system has no `/proc`.
pub(crate) fn read() -> Option<ProcessFigures> {
    let read = |path| std::fs::read_to_string(path).ok();
    let stat = read("/proc/self/stat")?;
    // The second field is the name in parentheses. It may contain spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // proc(5) numbers the fields from 1, and `fields` begins with the third one.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let boot_seconds = read("/proc/stat")?
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok())?;
    let limits = read("/proc/self/limits")?;
    let open_files_limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let status = read("/proc/self/status")?;
    let kilobytes = |name: &str| {
        status.lines().find_map(|line| {
            line.strip_prefix(name)?
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .ok()
        })
    };
    Some(ProcessFigures {
        cpu_seconds: (field(14)? + field(15)?) as f64 / TICKS_PER_SECOND,
        start_time_seconds: boot_seconds as f64 + field(22)? as f64 / TICKS_PER_SECOND,
        resident_bytes: kilobytes("VmRSS:")
            .map_or_else(|| field(24).unwrap_or(0) * PAGE_BYTES, |kb| kb * 1024),
        virtual_bytes: field(23)?,
        open_fds: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: open_files_limit
            .split_whitespace()
            .next()?
            .parse()
            .unwrap_or(u64::MAX),
    })
}
