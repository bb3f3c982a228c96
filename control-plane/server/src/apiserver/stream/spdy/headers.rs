//! SPDY's header blocks: names and values in one zlib stream a direction, which lasts as long as
//! the session and begins with a dictionary that the protocol fixes.

use super::SpdyError;
use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateError, InflateFlush};

/// Names in lower case and values, in order.
pub type Headers = Vec<(String, String)>;

/// A block as it is inflated: kubectl sends below 200 bytes.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Headers of one block.
const PAIRS_MAX: usize = 128;
/// Fast: the blocks are tiny.
const LEVEL: i32 = 1;
const WINDOW_BITS: u8 = 15;

/// Reads header blocks, in the order in which they come.
pub struct Reader(Inflate);

/// Writes header blocks, in the order in which they are sent.
pub struct Writer(Deflate);

impl Reader {
    pub fn new() -> Reader {
        Reader(Inflate::new(true, WINDOW_BITS))
    }

    /// Reads one block. Every block must be read, or the following ones make no sense.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut whole = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let outcome = self.0.decompress(block, &mut piece, InflateFlush::SyncFlush);
            let read = usize::try_from(self.0.total_in() - read).map_err(|_| SpdyError::Headers)?;
            let written = usize::try_from(self.0.total_out() - written);
            let written = written.map_err(|_| SpdyError::Headers)?;
            block = &block[read..];
            match outcome {
                Err(InflateError::NeedDict { .. }) => {
                    let set = self.0.set_dictionary(&dictionary());
                    set.map_err(|_| SpdyError::Headers)?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Headers),
                Ok(_) => {}
            }
            whole.extend_from_slice(&piece[..written]);
            if whole.len() > BLOCK_BYTES_MAX {
                return Err(SpdyError::TooLarge);
            }
            if written < piece.len() {
                // Nothing more comes out; what did not go in belongs to no block.
                return if block.is_empty() { Ok(whole) } else { Err(SpdyError::Headers) };
            }
        }
    }
}

impl Writer {
    pub fn new() -> Writer {
        let mut deflate = Deflate::new(LEVEL, true, WINDOW_BITS);
        deflate.set_dictionary(&dictionary()).expect("a new stream takes a dictionary");
        Writer(deflate)
    }

    /// Makes one block.
    pub fn write(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        put_length(&mut plain, headers.len())?;
        for (name, value) in headers {
            for text in [name, value] {
                put_length(&mut plain, text.len())?;
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut block = Vec::new();
        let mut left = plain.as_slice();
        let mut piece = [0; 4096];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let outcome = self.0.compress(left, &mut piece, DeflateFlush::SyncFlush);
            outcome.map_err(|_| SpdyError::Headers)?;
            let read = usize::try_from(self.0.total_in() - read).map_err(|_| SpdyError::Headers)?;
            let written = usize::try_from(self.0.total_out() - written);
            let written = written.map_err(|_| SpdyError::Headers)?;
            left = &left[read..];
            block.extend_from_slice(&piece[..written]);
            if left.is_empty() && written < piece.len() {
                return Ok(block);
            }
        }
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) -> Result<(), SpdyError> {
    let length = u32::try_from(length).map_err(|_| SpdyError::TooLarge)?;
    out.extend_from_slice(&length.to_be_bytes());
    Ok(())
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let count = take_length(&mut block)?;
    if count > PAIRS_MAX {
        return Err(SpdyError::TooLarge);
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = take_text(&mut block)?.to_ascii_lowercase();
        let value = take_text(&mut block)?;
        if name.is_empty() {
            return Err(SpdyError::Headers);
        }
        headers.push((name, value));
    }
    if block.is_empty() { Ok(headers) } else { Err(SpdyError::Headers) }
}

fn take_length(block: &mut &[u8]) -> Result<usize, SpdyError> {
    let (length, rest) = block.split_first_chunk::<4>().ok_or(SpdyError::Headers)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*length)).map_err(|_| SpdyError::Headers)
}

fn take_text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_length(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(SpdyError::Headers)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers)
}

/// The words of the dictionary that stand behind their length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";
/// What follows them.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416\
    417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
    Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        let length = u32::try_from(word.len()).expect("a word is short");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(REST.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(list: &[(&str, &str)]) -> Headers {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The identifier that the protocol gives for its dictionary.
    #[test]
    fn the_dictionary_is_the_protocols() {
        let mut deflate = Deflate::new(LEVEL, true, WINDOW_BITS);
        assert_eq!(deflate.set_dictionary(&dictionary()), Ok(0xe3c6_a7c2));
        assert_eq!(dictionary().len(), 1423);
    }

    #[test]
    fn blocks_of_a_session_depend_on_each_other() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        for number in 0..50 {
            let headers = pairs(&[("streamtype", "data"), ("requestid", &number.to_string())]);
            let block = writer.write(&headers).expect("a block");
            assert_eq!(reader.read(&block).expect("the same block"), headers);
        }
        let empty = reader.read(&writer.write(&[]).expect("a block"));
        assert!(empty.expect("a block").is_empty());
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for block in [&b""[..], b"\x00", b"abcdef", &[0x78, 0xbb, 1, 2, 3, 4]] {
            assert!(Reader::new().read(block).is_err(), "{block:?}");
        }
        let mut writer = Writer::new();
        let long = pairs(&[("a", &"x".repeat(BLOCK_BYTES_MAX + 1))]);
        let block = writer.write(&long).expect("a block");
        assert!(block.len() < 2048, "it is a bomb");
        assert!(matches!(Reader::new().read(&block), Err(SpdyError::TooLarge)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Reader::new().read(&bytes);
            let _ = parse(&bytes);
        }

        #[test]
        fn blocks_come_back(list in proptest::collection::vec(("[a-z]{1,20}", ".{0,60}"), 0..20)) {
            let block = Writer::new().write(&list).expect("a block");
            prop_assert_eq!(Reader::new().read(&block).expect("the same block"), list);
        }
    }
}
