//! Memory and time of the host, used up on the guest's behalf.

use std::hint::black_box;
use std::mem::forget;

use wasip2::clocks::monotonic_clock::{subscribe_duration, subscribe_instant};
use wasip2::http::types::Fields;
use wasip2::io::poll::poll;
use wasip2::random::random::get_random_bytes;

use crate::storm;

/// Resources that are never given back.
pub fn handles() {
    storm(|| {
        forget(Fields::new());
        Ok(())
    });
}

/// The largest strings that a call can carry.
pub fn strings() {
    let fields = Fields::new();
    let value = vec![b'x'; 4 << 20];
    storm(|| fields.append("x", &value).map_err(|error| format!("{error:?}")));
}

/// Timers that are never waited for.
pub fn pollables() {
    storm(|| {
        forget(subscribe_duration(u64::MAX / 4));
        Ok(())
    });
}

/// As many pollables as may be, asked for all at once, over and over.
pub fn poll_many() {
    let ready = subscribe_instant(0);
    let waiting: Vec<_> = (0..999).map(|_| subscribe_duration(u64::MAX / 4)).collect();
    let all: Vec<_> = std::iter::once(&ready).chain(&waiting).collect();
    storm(|| {
        black_box(poll(&all));
        Ok(())
    });
}

/// More of them than may be.
pub fn poll_too_many() {
    let waiting: Vec<_> = (0..4_000).map(|_| subscribe_duration(u64::MAX / 4)).collect();
    let all: Vec<_> = waiting.iter().collect();
    black_box(poll(&all));
}

pub fn random() {
    storm(|| {
        black_box(get_random_bytes(64 << 20));
        Ok(())
    });
}
