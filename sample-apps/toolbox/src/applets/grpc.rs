//! As much of HTTP/2 and gRPC as a health check takes, for `agnhost grpc-health-checking`.
//!
//! Whatever is called, the answer is that of `grpc.health.v1.Health/Check`. What the headers of a
//! request say is not read, so nothing of their compression is needed but the bytes that are sent.

use std::io;

use crate::io::{Input, Output};

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame from who was not told otherwise.
const FRAME_BYTES_MAX: usize = 16 << 10;

// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
// Flags of frames.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `SERVING` and `NOT_SERVING` of a `HealthCheckResponse`.
const STATES: [u8; 2] = [1, 2];

/// Answers one connection until its client ends it.
pub async fn converse(input: &Input, output: &Output, serves: impl Fn() -> bool) -> io::Result<()> {
    if exactly(input, PREFACE.len()).await? != PREFACE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    output.write(frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let Ok(head) = <[u8; 9]>::try_from(exactly(input, 9).await?) else { return Ok(()) };
        let [a, b, c, kind, flags, stream @ ..] = head;
        let stream = u32::from_be_bytes(stream);
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let payload = exactly(input, length).await?;
        if payload.len() < length {
            return Ok(());
        }
        let ends = flags & END_STREAM != 0;
        let mut answer = Vec::new();
        match kind {
            SETTINGS if flags & ACK == 0 => answer = frame(SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => answer = frame(PING, ACK, 0, &payload),
            DATA if length > 0 => {
                // What was read makes room for as much.
                answer = frame(WINDOW_UPDATE, 0, 0, &(length as u32).to_be_bytes());
            }
            GO_AWAY => return Ok(()),
            _ => {}
        }
        if ends && matches!(kind, DATA | HEADERS) {
            answer.extend(health(stream, serves()));
        }
        output.write(answer).await?;
    }
}

/// So many bytes; fewer at the end.
async fn exactly(input: &Input, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let more = input.chunk(count - bytes.len()).await?;
        if more.is_empty() {
            break;
        }
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Head, message and trailers of an answer.
fn health(stream: u32, serves: bool) -> Vec<u8> {
    // `:status: 200` has a number of its own; `content-type` is the name with the number 31.
    let head = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
    let message = [0, 0, 0, 0, 2, 0x08, STATES[usize::from(!serves)]];
    let trailers = [&[0, 11][..], b"grpc-status", &[1, b'0']].concat();
    [
        frame(HEADERS, END_HEADERS, stream, &head),
        frame(DATA, 0, stream, &message),
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(frames: &[Vec<u8>], serves: bool) -> Vec<u8> {
        let output = Output::memory();
        let (input, out) = (Input::text([PREFACE, &frames.concat()].concat()), output.clone());
        let done = crate::runtime::run(async move { converse(&input, &out, || serves).await });
        done.expect("it ends with its input");
        output.take()
    }

    #[test]
    fn a_call_is_answered_with_the_state() {
        let call = [
            frame(SETTINGS, 0, 0, &[]),
            frame(HEADERS, END_HEADERS, 1, b"whatever"),
            frame(PING, 0, 0, b"12345678"),
            frame(DATA, END_STREAM, 1, &[0; 5]),
        ];
        for (serves, state) in [(true, 1), (false, 2)] {
            let answer = said(&call, serves);
            let expected = [
                frame(SETTINGS, 0, 0, &[]),
                frame(SETTINGS, ACK, 0, &[]),
                frame(PING, ACK, 0, b"12345678"),
                frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 5]),
                health(1, serves),
            ];
            assert_eq!(answer, expected.concat());
            assert!(answer.windows(7).any(|bytes| bytes == [0, 0, 0, 0, 2, 8, state]));
        }
    }

    #[test]
    fn what_is_not_http_2_is_refused() {
        let (input, output) = (Input::text("GET / HTTP/1.1\r\n\r\n"), Output::null());
        let done = crate::runtime::run(async move { converse(&input, &output, || true).await });
        assert_eq!(done.expect_err("no").kind(), io::ErrorKind::InvalidData);
    }
}
