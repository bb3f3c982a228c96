//! `attacks`: a program that tries to take from its neighbours what it can, one way for each name.
//!
//! `make attacks` runs every one of them beside a Pod that serves requests. The first argument names
//! the attack. What can be refused goes on for `ATTACK_SECONDS`, then a line says how often it
//! succeeded and how often not; what ends in a trap or never ends has no such line. `/data` is a
//! volume, `TARGET` the host and port of a neighbour.

mod files;
mod host;
mod network;

use std::hint::black_box;
use std::time::{Duration, Instant};

type Attack = fn();

const ATTACKS: &[(&str, Attack)] = &[
    ("loop", endless),
    ("branches", branches),
    ("host-calls", host_calls),
    ("fill", fill),
    ("memory", memory),
    ("grow", grow),
    ("print", print),
    ("print-one-line", print_one_line),
    ("print-escapes", print_escapes),
    ("handles", host::handles),
    ("strings", host::strings),
    ("pollables", host::pollables),
    ("poll", host::poll_many),
    ("poll-too-many", host::poll_too_many),
    ("random", host::random),
    ("requests", network::requests),
    ("names", network::names),
    ("sockets", network::sockets),
    ("half-open", network::half_open),
    ("datagrams", network::datagrams),
    ("disk", files::disk),
    ("many-files", files::many_files),
    ("deep-folders", files::deep_folders),
    ("long-names", files::long_names),
    ("open-files", files::open_files),
];

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, attack)) = ATTACKS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = ATTACKS.iter().map(|(known, _)| *known).collect();
        eprintln!("usage: attacks NAME, where NAME is one of {}", names.join(", "));
        std::process::exit(2);
    };
    attack();
}

/// When an attack that is refused, not ended, gives up.
fn until() -> Instant {
    let seconds = std::env::var("ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
    Instant::now() + Duration::from_secs(seconds.unwrap_or(5))
}

/// Tries over and over until the time is up, then tells how it went.
fn storm(mut attempt: impl FnMut() -> Result<(), String>) {
    let until = until();
    let (mut succeeded, mut refused, mut last) = (0_u64, 0_u64, String::new());
    while Instant::now() < until {
        match attempt() {
            Ok(()) => succeeded += 1,
            Err(why) => {
                refused += 1;
                last = why;
            }
        }
    }
    println!("{succeeded} succeeded, {refused} refused: {last}");
}

fn endless() {
    let mut count = 0_u64;
    loop {
        count = black_box(count.wrapping_add(1));
    }
}

/// Every branch is taken at random: what predictors and tables of branches are bad at.
fn branches() {
    let mut state = 0x9e37_79b9_u32;
    let mut sum = 0_u32;
    loop {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        sum = match black_box(state) % 8 {
            0 => sum.wrapping_add(state),
            1 => sum.rotate_left(3),
            2 => sum ^ state,
            3 => sum.wrapping_mul(5),
            4 => !sum,
            5 => sum.wrapping_sub(state),
            6 => sum.reverse_bits(),
            _ => sum.count_ones(),
        };
        black_box(sum);
    }
}

/// Calls of the host that are as short as can be, a thousand million of them.
fn host_calls() {
    for _ in 0..1_000_000_000_u64 {
        black_box(wasip2::clocks::monotonic_clock::now());
    }
}

/// One instruction that writes all the memory there is: it cannot be interrupted.
fn fill() {
    let mut bytes = vec![0_u8; 100 << 20];
    let mut value = 0_u8;
    loop {
        bytes.fill(black_box(value));
        value = value.wrapping_add(1);
        black_box(&bytes);
    }
}

fn memory() {
    let mut held = Vec::new();
    loop {
        held.push(vec![1_u8; 1 << 20]);
        black_box(&held);
    }
}

/// Asks for memory again and again after it was refused.
fn grow() {
    storm(|| match core::arch::wasm32::memory_grow::<0>(16) {
        usize::MAX => Err("memory.grow said no".to_owned()),
        _ => Ok(()),
    });
}

fn print() {
    let line = "x".repeat(1023) + "\n";
    storm(|| {
        print!("{line}");
        Ok(())
    });
}

fn print_one_line() {
    let text = "x".repeat(64 << 10);
    storm(|| {
        print!("{text}");
        Ok(())
    });
}

/// What a terminal or a page in a browser would obey.
fn print_escapes() {
    storm(|| {
        println!("\x1b]0;owned\x07\x1b[2J\x1b[31m<script>alert(1)</script>\r\x08\u{202e}");
        Ok(())
    });
}
