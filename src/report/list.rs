//! Pages of lists that each read ranks once more.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::error::ReadError;

/// Items of one page at most.
const MAX_PER_PAGE: usize = 1000;
/// The first byte of a cursor: its version.
const VERSION: u8 = 2;
/// Bytes of a cursor: version, log, offset.
const BYTES: usize = 1 + 16 + 8;

/// A page of a ranked list: its first items, or those after a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListRequest {
    limit: usize,
    after: Option<ListCursor>,
}

impl From<usize> for ListRequest {
    /// The first `limit` items, 1 to 1000.
    fn from(limit: usize) -> Self {
        Self { limit, after: None }
    }
}

impl ListRequest {
    /// Requests the `limit` items after the cursor. The read ranks the list once more. An item that
    /// moved ahead since then is not repeated.
    pub fn after(cursor: ListCursor, limit: usize) -> Self {
        Self {
            limit,
            after: Some(cursor),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ReadError> {
        if (1..=MAX_PER_PAGE).contains(&self.limit) {
            return Ok(());
        }
        Err(ReadError::Invalid {
            parameter: "limit",
            value: self.limit.to_string(),
            expected: "1 to 1000 items",
        })
    }

    /// Returns how many items of the list of this log come before the page.
    pub(crate) fn offset(&self, log_id: Uuid) -> Result<usize, ReadError> {
        match self.after {
            None => Ok(0),
            Some(cursor) if cursor.log_id == log_id => {
                usize::try_from(cursor.offset).map_err(|_| cursor.invalid())
            }
            Some(cursor) => Err(cursor.invalid()),
        }
    }

    /// Takes the page from the items. Returns it with the cursor for the next one.
    pub(crate) fn cut<T>(
        &self,
        items: impl Iterator<Item = T>,
        log_id: Uuid,
    ) -> Result<(Vec<T>, Option<ListCursor>), ReadError> {
        let offset = self.offset(log_id)?;
        let mut items = items.skip(offset);
        let page: Vec<T> = items.by_ref().take(self.limit).collect();
        let next = items.next().map(|_| ListCursor {
            log_id,
            offset: (offset + page.len()) as u64,
        });
        Ok((page, next))
    }
}

/// A place in a ranked list of one log. As text it is opaque, and can be given away and parsed
/// later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListCursor {
    log_id: Uuid,
    offset: u64,
}

impl ListCursor {
    fn invalid(self) -> ReadError {
        let expected =
            "a cursor of this log, which has replaced another one: begin without a cursor";
        ReadError::Invalid {
            parameter: "cursor",
            value: self.to_string(),
            expected,
        }
    }
}

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.push(VERSION);
        bytes.extend(self.log_id.as_bytes());
        bytes.extend(self.offset.to_be_bytes());
        write_hex(f, &bytes)
    }
}

impl FromStr for ListCursor {
    type Err = ReadError;

    fn from_str(text: &str) -> Result<Self, ReadError> {
        let parse = || {
            let bytes: [u8; BYTES] = read_hex(text)?;
            let (head, offset) = bytes.split_at(17);
            let log_id = Uuid::from_slice(head.strip_prefix(&[VERSION])?).ok()?;
            Some(Self {
                log_id,
                offset: u64::from_be_bytes(offset.try_into().ok()?),
            })
        };
        parse().ok_or_else(|| ReadError::Invalid {
            parameter: "cursor",
            value: text.into(),
            expected: "a cursor that a page gave",
        })
    }
}

impl Serialize for ListCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Writes a cursor: it goes into URLs, so that its digits need no escapes.
pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads what [`write_hex`] wrote, if it has exactly `N` bytes.
pub(crate) fn read_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_each_item_once_and_the_last_one_has_no_successor() {
        let log_id = Uuid::from_u128(7);
        let (mut request, mut seen) = (ListRequest::from(3), Vec::new());
        loop {
            let (page, next) = request.cut(0..7, log_id).unwrap();
            seen.extend(page);
            let Some(next) = next else { break };
            request = ListRequest::after(next.to_string().parse().unwrap(), 3);
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(ListRequest::from(7).cut(0..7, log_id).unwrap().1, None);
    }

    #[test]
    fn cursor_of_another_log_and_text_that_is_no_cursor_are_refused() {
        let cursor = ListCursor {
            log_id: Uuid::from_u128(7),
            offset: 3,
        };
        assert!(
            ListRequest::after(cursor, 3)
                .cut(0..7, Uuid::from_u128(8))
                .is_err()
        );
        for text in [
            "",
            "x",
            "AQ",
            &cursor.to_string()[1..],
            &format!("{cursor}A"),
        ] {
            assert!(text.parse::<ListCursor>().is_err(), "{text}");
        }
        let beyond = ListCursor {
            offset: u64::MAX,
            ..cursor
        };
        assert_eq!(
            ListRequest::after(beyond, 3)
                .cut(0..7, cursor.log_id)
                .unwrap(),
            (vec![], None)
        );
    }
}
