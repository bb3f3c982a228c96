//! SPDY/3.1 frames, as far as Kubernetes uses them.
//!
//! ```text
//!   control   1 version(15) | type(16) | flags(8) length(24) | ...
//!   data      0 stream(31)             | flags(8) length(24) | bytes
//! ```
//!
//! A control frame is read as a whole and has a bound. A data frame may have 16 MiB; it is handed
//! on in pieces as they arrive, so nothing that a client announces sizes a buffer here.

use super::{
    SpdyError,
    headers::{Headers, Reader, Writer},
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const FLAG_FIN: u8 = 1;
const HEAD_BYTES: usize = 8;
const STREAM_MASK: u32 = 0x7fff_ffff;

/// A control frame with its headers, compressed.
const CONTROL_BYTES_MAX: usize = 16 << 10;
/// A piece of a data frame.
pub const PIECE_BYTES_MAX: usize = 32 << 10;

/// What travels in a session. SETTINGS and WINDOW_UPDATE are read over: Kubernetes' clients
/// neither keep windows nor wait for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream { id: u32, fin: bool, headers: Headers },
    /// Accepts one.
    SynReply { id: u32, headers: Headers },
    /// Ends one at once, in both directions.
    Reset { id: u32, status: u32 },
    /// To be sent back, by the side that did not choose the number.
    Ping { id: u32 },
    /// No more streams.
    GoAway { last: u32 },
    /// More headers of a stream.
    Headers { id: u32, fin: bool },
    /// A piece of a stream; `fin` with its last.
    Data { id: u32, fin: bool, bytes: Bytes },
}

/// Reads and writes frames of one session.
pub struct Codec {
    reader: Reader,
    writer: Writer,
    /// The data frame that is being read, and how much of it is to come.
    data: Option<(u32, bool, usize)>,
}

impl Codec {
    pub fn new() -> Codec {
        Codec { reader: Reader::new(), writer: Writer::new(), data: None }
    }

    fn data(&mut self, source: &mut BytesMut) -> Option<Frame> {
        let (id, fin, left) = self.data?;
        let count = left.min(source.len()).min(PIECE_BYTES_MAX);
        if count == 0 && left > 0 {
            source.reserve(left.min(PIECE_BYTES_MAX));
            return None;
        }
        let bytes = source.split_to(count).freeze();
        let left = left - count;
        self.data = (left > 0).then_some((id, fin, left));
        Some(Frame::Data { id, fin: fin && left == 0, bytes })
    }

    /// A control frame; None for one that means nothing here.
    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let mut rest = body;
        let fin = flags & FLAG_FIN != 0;
        let mut number = || rest.try_get_u32().map_err(|_| SpdyError::Frame);
        let frame = match kind {
            SYN_STREAM => {
                let id = number()? & STREAM_MASK;
                // The stream that it belongs to, its priority, its slot.
                let (_, block) = rest.split_at_checked(6).ok_or(SpdyError::Frame)?;
                Frame::SynStream { id, fin, headers: self.reader.read(block)? }
            }
            SYN_REPLY => {
                let id = number()? & STREAM_MASK;
                Frame::SynReply { id, headers: self.reader.read(rest)? }
            }
            HEADERS => {
                let id = number()? & STREAM_MASK;
                // Read in any case: the blocks of a session are one compressed stream.
                self.reader.read(rest)?;
                Frame::Headers { id, fin }
            }
            RST_STREAM => Frame::Reset { id: number()? & STREAM_MASK, status: number()? },
            PING => Frame::Ping { id: number()? },
            GOAWAY => Frame::GoAway { last: number()? & STREAM_MASK },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = SpdyError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            if self.data.is_some() {
                return Ok(self.data(source));
            }
            let Some(head) = source.first_chunk::<HEAD_BYTES>() else {
                source.reserve(HEAD_BYTES);
                return Ok(None);
            };
            let [a, b, c, d, flags, length @ ..] = *head;
            let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
            if a & 0x80 == 0 {
                source.advance(HEAD_BYTES);
                let id = u32::from_be_bytes([a, b, c, d]);
                self.data = Some((id, flags & FLAG_FIN != 0, length));
                continue;
            }
            if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
                return Err(SpdyError::Version);
            }
            if length > CONTROL_BYTES_MAX {
                return Err(SpdyError::TooLarge);
            }
            if source.len() < HEAD_BYTES + length {
                source.reserve(HEAD_BYTES + length - source.len());
                return Ok(None);
            }
            source.advance(HEAD_BYTES);
            let body = source.split_to(length);
            if let Some(frame) = self.control(u16::from_be_bytes([c, d]), flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }
}

impl Encoder<Frame> for Codec {
    type Error = SpdyError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        let mut body = Vec::new();
        let (kind, flags) = match frame {
            Frame::Data { id, fin, bytes } => {
                out.reserve(HEAD_BYTES + bytes.len());
                out.put_u32(id & STREAM_MASK);
                put_length(out, u8::from(fin), bytes.len())?;
                out.put_slice(&bytes);
                return Ok(());
            }
            Frame::SynStream { id, fin, headers } => {
                body.put_u32(id);
                body.put_slice(&[0; 6]);
                body.extend(self.writer.write(&headers)?);
                (SYN_STREAM, u8::from(fin))
            }
            Frame::SynReply { id, headers } => {
                body.put_u32(id);
                body.extend(self.writer.write(&headers)?);
                (SYN_REPLY, 0)
            }
            Frame::Headers { id, fin } => {
                body.put_u32(id);
                body.extend(self.writer.write(&[])?);
                (HEADERS, u8::from(fin))
            }
            Frame::Reset { id, status } => {
                body.put_u32(id);
                body.put_u32(status);
                (RST_STREAM, 0)
            }
            Frame::Ping { id } => {
                body.put_u32(id);
                (PING, 0)
            }
            Frame::GoAway { last } => {
                body.put_u32(last);
                body.put_u32(0);
                (GOAWAY, 0)
            }
        };
        out.reserve(HEAD_BYTES + body.len());
        out.put_u16(0x8000 | VERSION);
        out.put_u16(kind);
        put_length(out, flags, body.len())?;
        out.put_slice(&body);
        Ok(())
    }
}

fn put_length(out: &mut BytesMut, flags: u8, length: usize) -> Result<(), SpdyError> {
    let length = u32::try_from(length).ok().filter(|length| *length < 1 << 24);
    let length = length.ok_or(SpdyError::TooLarge)?;
    out.put_u32(u32::from(flags) << 24 | length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(codec: &mut Codec, bytes: &mut BytesMut) -> Vec<Frame> {
        std::iter::from_fn(|| codec.decode(bytes).expect("frames")).collect()
    }

    #[test]
    fn frames_have_the_protocols_layout() {
        let mut out = BytesMut::new();
        let mut codec = Codec::new();
        let data = Frame::Data { id: 5, fin: true, bytes: Bytes::from_static(b"ab") };
        for frame in [Frame::Ping { id: 2 }, Frame::Reset { id: 3, status: 5 }, data] {
            codec.encode(frame, &mut out).expect("it is encoded");
        }
        let want = [
            0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2, // PING 2
            0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5, // RST_STREAM 3, 5
            0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b', // the last data of stream 5
        ];
        assert_eq!(out[..], want);
    }

    #[test]
    fn what_means_nothing_here_is_read_over() {
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0];
        let window = [0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0];
        let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
        let mut bytes = BytesMut::from(&[&settings[..], &window, &ping].concat()[..]);
        assert_eq!(decoded(&mut Codec::new(), &mut bytes), [Frame::Ping { id: 1 }]);
    }

    #[test]
    fn large_data_comes_in_pieces_without_being_collected() {
        let mut codec = Codec::new();
        let mut bytes = BytesMut::from(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff, 7][..]);
        let piece = |fin, bytes| Frame::Data { id: 1, fin, bytes };
        assert_eq!(decoded(&mut codec, &mut bytes), [piece(false, Bytes::from_static(&[7]))]);
        assert!(bytes.capacity() <= 2 * PIECE_BYTES_MAX);
        let mut left = (1 << 24) - 2;
        while left > 0 {
            let count = left.min(100_000);
            bytes.extend_from_slice(&vec![7; count]);
            left -= count;
            let frames = decoded(&mut codec, &mut bytes);
            let total: usize = frames
                .iter()
                .map(|frame| match frame {
                    Frame::Data { bytes, .. } => bytes.len(),
                    other => panic!("{other:?}"),
                })
                .sum();
            assert_eq!(total, count);
            let last = frames.last().expect("a piece");
            assert!(matches!(last, Frame::Data { fin, .. } if *fin == (left == 0)));
        }
    }

    #[test]
    fn other_protocols_and_bombs_are_refused() {
        let http = &mut BytesMut::from(&b"\x80\x02\0\x06\0\0\0\x04\0\0\0\0"[..]);
        assert!(matches!(Codec::new().decode(http), Err(SpdyError::Version)));
        let long = &mut BytesMut::from(&[0x80, 3, 0, 1, 0, 1, 0, 0][..]);
        assert!(matches!(Codec::new().decode(long), Err(SpdyError::TooLarge)));
        let short = &mut BytesMut::from(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0][..]);
        assert!(matches!(Codec::new().decode(short), Err(SpdyError::Frame)));
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let headers = proptest::collection::vec(("[a-z-]{1,12}", "[ -~]{0,30}"), 0..6);
        let data = proptest::collection::vec(any::<u8>(), 0..300);
        let id = 1..STREAM_MASK;
        proptest::collection::vec(
            prop_oneof![
                (id.clone(), any::<bool>(), headers.clone())
                    .prop_map(|(id, fin, headers)| Frame::SynStream { id, fin, headers }),
                (id.clone(), headers).prop_map(|(id, headers)| Frame::SynReply { id, headers }),
                (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::Reset { id, status }),
                any::<u32>().prop_map(|id| Frame::Ping { id }),
                id.clone().prop_map(|last| Frame::GoAway { last }),
                (id.clone(), any::<bool>()).prop_map(|(id, fin)| Frame::Headers { id, fin }),
                (id, any::<bool>(), data).prop_map(|(id, fin, data)| Frame::Data {
                    id,
                    fin,
                    bytes: data.into()
                }),
            ],
            0..12,
        )
    }

    proptest! {
        /// However the bytes are cut, the same frames come out; only data may come in pieces.
        #[test]
        fn frames_survive_any_cut(frames in frames(), cut in 1_usize..64) {
            let mut wire = BytesMut::new();
            let (mut writer, mut reader) = (Codec::new(), Codec::new());
            for frame in &frames {
                writer.encode(frame.clone(), &mut wire).expect("it is encoded");
            }
            let (mut arrived, mut read) = (BytesMut::new(), Vec::<Frame>::new());
            for piece in wire.chunks(cut) {
                arrived.extend_from_slice(piece);
                while let Some(frame) = reader.decode(&mut arrived).expect("frames") {
                    read.push(frame);
                }
            }
            prop_assert_eq!(joined(read), joined(frames));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut source = BytesMut::from(&bytes[..]);
            let mut codec = Codec::new();
            while let Ok(Some(_)) = codec.decode(&mut source) {}
        }
    }

    /// Neighbouring pieces of the same stream as one, as a reader sees them.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        for frame in frames {
            match (out.last_mut(), frame) {
                (
                    Some(Frame::Data { id, fin, bytes }),
                    Frame::Data { id: same, fin: last, bytes: more },
                ) if *id == same && !*fin => {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                    *fin = last;
                }
                (_, frame) => out.push(frame),
            }
        }
        out
    }
}
