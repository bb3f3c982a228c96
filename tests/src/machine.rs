//! What the machine under a measurement was like.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

/// The processors' time since the machine started, as `/proc/stat` counts it (proc_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorTime {
    all: u64,
    /// What this machine would have used while its host ran others.
    stolen: u64,
}

impl ProcessorTime {
    pub fn now() -> Result<ProcessorTime> {
        let text = std::fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        parse(&text).context("/proc/stat has no line of all processors")
    }

    /// What part of the time since then the host gave to others, in per cent.
    pub fn stolen_percent_since(self, before: ProcessorTime) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        100.0 * self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }
}

/// How many processes wanted a processor in the last minute.
pub fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("three averages")?.parse()?)
}

/// The address by which the machine would leave, if it has one besides loopback.
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel looks at its routes.
    socket.connect("203.0.113.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

/// The calling thread, which measures, is not what is measured: whenever it can run it does, as if it
/// were on a machine of its own. Else, in a session other than the measured one's, it would wait for
/// the kernel's next tick behind whatever that computes: sessions share the CPU as groups (`autogroup`
/// in sched(7)), and the priorities within one mean nothing to the others.
pub fn go_first() {
    use nix::libc;
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the struct of this frame. Who may not have it is measured as all others
    // are.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
}

/// Has a program be as if it were on another machine: its work is not what whoever is measured here waits
/// for. What it sends comes when nobody else needs a processor, which is kinder than a network is. It ends
/// with the thread that starts it.
pub fn elsewhere(command: &mut Command) -> &mut Command {
    // SAFETY: plain system calls; nothing is allocated between fork and exec.
    unsafe {
        command.pre_exec(|| {
            wherry_wasi_shim::give_way_to_all();
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        })
    }
}

fn parse(text: &str) -> Option<ProcessorTime> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; what guests use is in user and nice already.
    let times: Vec<u64> = line.split_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
    let stolen = *times.get(7)?;
    Some(ProcessorTime { all: times.iter().sum(), stolen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_took_is_a_part_of_all() {
        let at = |text: &str| parse(text).expect("a line of all processors");
        let before = at("cpu  10 0 10 80 0 0 0 0 99 99\ncpu0 1 1 1 1 1 1 1 1\n");
        let after = at("cpu  20 0 20 130 0 0 0 30 99 99\n");
        assert!((after.stolen_percent_since(before) - 30.0).abs() < 1e-9);
        assert!(before.stolen_percent_since(before).abs() < 1e-9);
        assert_eq!(parse("cpu 1 2 3"), None);
        assert!(ProcessorTime::now().is_ok(), "this machine says so, too");
    }
}
