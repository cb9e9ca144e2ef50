//! Reader of the protobuf wire format that borrows from the body and allocates nothing.
//!
//! A message is a sequence of fields, each with a number, a wire type and a value. A reader skips a
//! field that it does not know by its length, so that a span that is no retrieval costs a few
//! comparisons. The format: <https://protobuf.dev/programming-guides/encoding/>.

use std::fmt;

/// Maximum depth of groups, which are obsolete: no field of OpenTelemetry is one, but a reader must
/// skip unknown ones.
const MAX_GROUP_DEPTH: u32 = 16;

/// Value of a field, by its wire type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// Reason why bytes are no valid message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// The message ends within a field.
    Truncated,
    /// A number has more than ten bytes or 64 bits.
    OverlongVarint,
    /// A field has the number 0, or one above 2^29 - 1.
    FieldNumber,
    /// A field has a wire type that does not exist.
    WireType,
    /// A known field has another wire type than its definition.
    UnexpectedWireType,
    /// Groups are nested too deeply, or end without a beginning.
    Group,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "it ends within a field",
            Self::OverlongVarint => "a varint has more than 64 bits",
            Self::FieldNumber => "a field number is 0 or above 536870911",
            Self::WireType => "a wire type is 6 or 7",
            Self::UnexpectedWireType => "a field has another wire type than in its definition",
            Self::Group => "groups are nested too deeply, or end without a beginning",
        })
    }
}

/// Fields of a message, in their order.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn read(&mut self) -> Result<Option<(u32, Field<'a>)>, Malformed> {
        while !self.rest.is_empty() {
            let (number, wire_type) = self.key()?;
            match wire_type {
                WireType::Plain(wire_type) => {
                    return Ok(Some((number, self.value(wire_type)?)));
                }
                WireType::GroupStart => self.skip_group(number)?,
                WireType::GroupEnd => return Err(Malformed::Group),
            }
        }
        Ok(None)
    }

    fn key(&mut self) -> Result<(u32, WireType), Malformed> {
        let key = u32::try_from(self.varint()?).map_err(|_| Malformed::FieldNumber)?;
        let number = key >> 3;
        if number == 0 {
            return Err(Malformed::FieldNumber);
        }
        let wire_type = match key & 7 {
            0 => WireType::Plain(Plain::Varint),
            1 => WireType::Plain(Plain::Fixed64),
            2 => WireType::Plain(Plain::Bytes),
            3 => WireType::GroupStart,
            4 => WireType::GroupEnd,
            5 => WireType::Plain(Plain::Fixed32),
            _ => return Err(Malformed::WireType),
        };
        Ok((number, wire_type))
    }

    fn value(&mut self, wire_type: Plain) -> Result<Field<'a>, Malformed> {
        Ok(match wire_type {
            Plain::Varint => Field::Varint(self.varint()?),
            Plain::Fixed64 => Field::Fixed64(u64::from_le_bytes(self.array()?)),
            Plain::Bytes => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed::Truncated)?;
                Field::Bytes(self.take(length)?)
            }
            Plain::Fixed32 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
        })
    }

    /// Skips an unknown group up to its end. Counts levels instead of recursing, so that a body
    /// cannot choose how much of the stack is used.
    fn skip_group(&mut self, number: u32) -> Result<(), Malformed> {
        let mut open = [0; MAX_GROUP_DEPTH as usize];
        let mut depth = 0;
        let mut begun = Some(number);
        loop {
            if let Some(number) = begun.take() {
                *open.get_mut(depth).ok_or(Malformed::Group)? = number;
                depth += 1;
            }
            let (number, wire_type) = self.key()?;
            match wire_type {
                WireType::Plain(wire_type) => {
                    self.value(wire_type)?;
                }
                WireType::GroupStart => begun = Some(number),
                WireType::GroupEnd => {
                    depth -= 1;
                    if open.get(depth) != Some(&number) {
                        return Err(Malformed::Group);
                    }
                    if depth == 0 {
                        return Ok(());
                    }
                }
            }
        }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        // Most numbers are keys and lengths of one byte.
        if let Some((&byte, rest)) = self.rest.split_first()
            && byte < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
            self.rest = rest;
            // The tenth byte has one bit left.
            if shift == 63 && byte > 1 {
                return Err(Malformed::OverlongVarint);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed::OverlongVarint)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().transpose();
        if matches!(read, Some(Err(_))) {
            // Nothing after a fault has a known meaning.
            self.rest = &[];
        }
        read
    }
}

enum WireType {
    Plain(Plain),
    GroupStart,
    GroupEnd,
}

#[derive(Clone, Copy)]
enum Plain {
    Varint,
    Fixed64,
    Bytes,
    Fixed32,
}

impl<'a> Field<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed64(_) | Self::Fixed32(_) => {
                Err(Malformed::UnexpectedWireType)
            }
        }
    }

    pub(super) fn varint(self) -> Result<u64, Malformed> {
        match self {
            Self::Varint(number) => Ok(number),
            Self::Bytes(_) | Self::Fixed64(_) | Self::Fixed32(_) => {
                Err(Malformed::UnexpectedWireType)
            }
        }
    }

    pub(super) fn fixed64(self) -> Result<u64, Malformed> {
        match self {
            Self::Fixed64(number) => Ok(number),
            Self::Bytes(_) | Self::Varint(_) | Self::Fixed32(_) => {
                Err(Malformed::UnexpectedWireType)
            }
        }
    }
}

/// Reads the beginning of a field: its number, the size of the key with the length or number after
/// it, and the length of bytes that follow. `None` as the length: it is a number.
///
/// Groups cannot be skipped without their end, so they are faults here, at the upper levels of a
/// request.
pub(super) fn header(bytes: &[u8]) -> Result<(usize, usize, Option<usize>), Malformed> {
    let mut fields = Fields::new(bytes);
    let (number, wire_type) = fields.key()?;
    let length = match wire_type {
        WireType::Plain(Plain::Bytes) => {
            Some(usize::try_from(fields.varint()?).map_err(|_| Malformed::Truncated)?)
        }
        WireType::Plain(number) => {
            fields.value(number)?;
            None
        }
        WireType::GroupStart | WireType::GroupEnd => return Err(Malformed::Group),
    };
    Ok((number as usize, bytes.len() - fields.rest.len(), length))
}

/// Writer of messages, for responses. They have no field of a number above 15.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// Adds a number, unless it is 0, the default.
    pub(super) fn varint(mut self, field: u8, number: u64) -> Self {
        if number != 0 {
            self.0.push(field << 3);
            self.push_varint(number);
        }
        self
    }

    /// Adds text, bytes or a message.
    pub(super) fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.push_varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn push_varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(low_bits(number) | 0x80);
            number >>= 7;
        }
        self.0.push(low_bits(number));
    }
}

/// Returns the lowest seven bits.
fn low_bits(number: u64) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u32, Field<'_>)>, Malformed> {
        Fields::new(bytes).collect()
    }

    #[test]
    fn fields_have_their_numbers_and_values() {
        let message = [
            0x08, 0x96, 0x01, // 1: varint 150
            0x12, 0x02, b'h', b'i', // 2: "hi"
            0x19, 1, 0, 0, 0, 0, 0, 0, 0, // 3: fixed64 1
            0x25, 2, 0, 0, 0, // 4: fixed32 2
        ];
        let expected = vec![
            (1, Field::Varint(150)),
            (2, Field::Bytes(b"hi")),
            (3, Field::Fixed64(1)),
            (4, Field::Fixed32(2)),
        ];
        assert_eq!(read(&message), Ok(expected));
        for end in 1..message.len() {
            let is_field_end = [3, 7, 16].contains(&end);
            assert_eq!(read(&message[..end]).is_ok(), is_field_end, "{end}");
        }
    }

    #[test]
    fn varints_have_64_bits_in_ten_bytes_at_most() {
        let mut largest = vec![0x08];
        largest.extend([0xff; 9]);
        largest.push(1);
        assert_eq!(read(&largest), Ok(vec![(1, Field::Varint(u64::MAX))]));
        *largest.last_mut().unwrap() = 2;
        assert_eq!(read(&largest), Err(Malformed::OverlongVarint));
        *largest.last_mut().unwrap() = 0x81;
        largest.push(0);
        assert_eq!(read(&largest), Err(Malformed::OverlongVarint));
        // Ten bytes for zero are allowed.
        let padded = [
            0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
        ];
        assert_eq!(read(&padded), Ok(vec![(1, Field::Varint(0))]));
    }

    #[test]
    fn unknown_groups_are_skipped_and_bounded() {
        let nested = [0x0b, 0x13, 0x18, 1, 0x14, 0x0c, 0x10, 7];
        assert_eq!(read(&nested), Ok(vec![(2, Field::Varint(7))]));
        for bad in [&[0x0b, 0x14][..], &[0x0c], &[0x0b, 0x13, 0x0c, 0x14]] {
            assert_eq!(read(bad), Err(Malformed::Group), "{bad:?}");
        }
        assert_eq!(read(&[0x0b]), Err(Malformed::Truncated));
        assert_eq!(read(&[0x0b; 17]), Err(Malformed::Group));
        let mut deepest = vec![0x0b; 16];
        deepest.extend([0x0c; 16]);
        assert_eq!(read(&deepest), Ok(Vec::new()));
    }

    #[test]
    fn invalid_keys_and_lengths_are_faults() {
        assert_eq!(read(&[0x00, 0]), Err(Malformed::FieldNumber));
        assert_eq!(read(&[0x0e]), Err(Malformed::WireType));
        assert_eq!(read(&[0x0f]), Err(Malformed::WireType));
        let long_key = [0x88, 0x80, 0x80, 0x80, 0x10, 1];
        assert_eq!(read(&long_key), Err(Malformed::FieldNumber));
        let length = [
            0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ];
        assert_eq!(read(&length), Err(Malformed::Truncated));
        let mut fields = Fields::new(&[0x00, 0x08, 1]);
        assert_eq!(fields.next(), Some(Err(Malformed::FieldNumber)));
        assert_eq!(fields.next(), None);
    }

    #[test]
    fn written_messages_are_read_back() {
        let message = Message::default()
            .varint(1, 300)
            .varint(2, 0)
            .bytes(3, b"text")
            .varint(4, u64::MAX)
            .into_bytes();
        let expected = vec![
            (1, Field::Varint(300)),
            (3, Field::Bytes(b"text")),
            (4, Field::Varint(u64::MAX)),
        ];
        assert_eq!(read(&message), Ok(expected));
    }
}
