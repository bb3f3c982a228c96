//! Messages of protobuf, as far as two of them need it, and gRPC's five bytes before each.

/// Whom to greet, how often, and how fast.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hello {
    pub name: String,
    pub times: u32,
    pub pause_ms: u32,
}

impl Hello {
    /// Fields that are not known are passed over.
    pub fn read(mut bytes: &[u8]) -> Option<Hello> {
        let mut hello = Hello::default();
        while !bytes.is_empty() {
            match field(&mut bytes)? {
                (1, Value::Bytes(name)) => hello.name = String::from_utf8(name.to_vec()).ok()?,
                (2, Value::Number(times)) => hello.times = u32::try_from(times).ok()?,
                (3, Value::Number(pause)) => hello.pause_ms = u32::try_from(pause).ok()?,
                _ => {}
            }
        }
        Some(hello)
    }

    pub fn write(&self) -> Vec<u8> {
        let mut bytes = text(&self.name);
        for (tag, number) in [(2 << 3, self.times), (3 << 3, self.pause_ms)] {
            bytes.push(tag);
            varint(&mut bytes, u64::from(number));
        }
        bytes
    }
}

/// A message whose field 1 is a text.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = vec![(1 << 3) | 2];
    varint(&mut bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The text in field 1.
pub fn text_of(bytes: &[u8]) -> Option<String> {
    Some(Hello::read(bytes)?.name)
}

/// A message as it stands in a body: not compressed, its length, itself.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("messages are small");
    let mut bytes = vec![0];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// The length of the message behind these five bytes; none if it is compressed.
pub fn unframed_length([compressed, a, b, c, d]: [u8; 5]) -> Option<usize> {
    let length = u32::from_be_bytes([a, b, c, d]);
    (compressed == 0).then(|| usize::try_from(length).unwrap_or(usize::MAX))
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that no field here has.
    Other,
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for index in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << (7 * index);
        if *first < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(taken)
}

/// The next field: its number and value.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = number(bytes)?;
    let value = match tag & 7 {
        0 => Value::Number(number(bytes)?),
        1 => take(bytes, 8).map(|_| Value::Other)?,
        2 => {
            let length = number(bytes)?;
            Value::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Value::Other)?,
        _ => return None,
    };
    Some((tag >> 3, value))
}
