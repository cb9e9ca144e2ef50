//! Splits a stream into records of bounded size: JSON lines, elements of a JSON array, or records
//! of CSV.

use std::collections::VecDeque;

use encoding_rs::{CoderResult, Decoder, Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// Record of a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the line or of the list element, from 1.
    pub number: u64,
    /// Text of the record. `None` if it was too long and was skipped.
    pub text: Option<Vec<u8>>,
}

/// Splitter of a stream into records. Its memory is bounded by one block and the maximum size of a
/// record.
pub struct Lines {
    max_bytes: usize,
    accepts_csv: bool,
    /// First bytes of the stream, until there are enough to detect the encoding.
    prefix: Option<Vec<u8>>,
    /// Decoder of an encoding other than UTF-8.
    decoder: Option<Decoder>,
    layout: Layout,
    /// Record that has begun but not ended.
    partial: Vec<u8>,
    /// `true` if the partial record is too long.
    skipping: bool,
    /// Number of records that have ended, including empty ones.
    ended: u64,
    ready: VecDeque<Line>,
}

/// Layout of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The stream has had only whitespace.
    Unknown,
    Lines,
    /// CSV, in which a record may contain line feeds within quotes.
    Csv {
        in_quotes: bool,
    },
    Array(Nesting),
}

/// Position within the nesting of JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Depth at which the current element starts. `None` between two elements.
    element_depth: Option<usize>,
}

impl Lines {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            accepts_csv: false,
            prefix: Some(Vec::new()),
            decoder: None,
            layout: Layout::Unknown,
            partial: Vec::new(),
            skipping: false,
            ended: 0,
            ready: VecDeque::new(),
        }
    }

    /// Also accepts CSV. The first record of CSV is the header.
    #[cfg(feature = "program")]
    pub fn or_csv(self) -> Self {
        Self {
            accepts_csv: true,
            ..self
        }
    }

    #[cfg(feature = "program")]
    pub fn are_csv(&self) -> bool {
        matches!(self.layout, Layout::Csv { .. })
    }

    /// Returns the number of records that have ended, including empty ones.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Returns the next record.
    pub fn pop(&mut self) -> Option<Line> {
        self.ready.pop_front()
    }

    /// Adds a block of the stream.
    pub fn push(&mut self, block: &[u8]) {
        let Some(prefix) = &mut self.prefix else {
            return self.decode(block, false);
        };
        prefix.extend_from_slice(block);
        // The longest byte order mark, that of UTF-8, has three bytes.
        if prefix.len() >= 3 {
            self.detect_encoding();
        }
    }

    /// Ends the last record, which may lack a line feed. Further calls have no effect.
    pub fn finish(&mut self) {
        self.detect_encoding();
        self.decode(&[], true);
        if self.skipping || !self.partial.is_empty() {
            self.end();
        }
    }

    fn detect_encoding(&mut self) {
        let Some(prefix) = self.prefix.take() else {
            return;
        };
        let (encoding, bom_bytes) = encoding(&prefix);
        self.decoder = (encoding != UTF_8).then(|| encoding.new_decoder_without_bom_handling());
        self.decode(prefix.get(bom_bytes..).unwrap_or_default(), false);
    }

    fn decode(&mut self, block: &[u8], is_last: bool) {
        let Some(mut decoder) = self.decoder.take() else {
            return self.split(block);
        };
        let mut rest = block;
        loop {
            let mut text = String::with_capacity(block.len() + 16);
            let (result, read, _) = decoder.decode_to_string(rest, &mut text, is_last);
            self.split(text.as_bytes());
            rest = rest.get(read..).unwrap_or_default();
            if result == CoderResult::InputEmpty {
                break;
            }
        }
        if !is_last {
            self.decoder = Some(decoder);
        }
    }

    fn split(&mut self, mut block: &[u8]) {
        while !block.is_empty() {
            block = match self.layout {
                Layout::Unknown => {
                    let space = block
                        .iter()
                        .take_while(|byte| byte.is_ascii_whitespace())
                        .count();
                    let (space, rest) = block.split_at(space);
                    self.ended += space.iter().filter(|byte| **byte == b'\n').count() as u64;
                    match rest.first() {
                        None => {}
                        Some(b'[') => {
                            (self.layout, self.ended) = (Layout::Array(Nesting::default()), 0)
                        }
                        Some(_) => self.layout = Layout::Lines,
                    }
                    rest
                }
                Layout::Lines => self.split_line(block),
                Layout::Csv { in_quotes } => self.split_csv(block, in_quotes),
                Layout::Array(nesting) => self.split_array(block, nesting),
            };
        }
    }

    /// Reads the block up to a line feed. Returns the rest.
    fn split_line<'b>(&mut self, block: &'b [u8]) -> &'b [u8] {
        let Some(end) = block.iter().position(|byte| *byte == b'\n') else {
            self.append(block);
            return &[];
        };
        let (line, rest) = block.split_at(end);
        self.append(line);
        if self.accepts_csv && self.ended == 0 && separator(&self.partial).is_some() {
            self.layout = Layout::Csv { in_quotes: false };
        }
        self.end();
        rest.get(1..).unwrap_or_default()
    }

    fn split_csv<'b>(&mut self, block: &'b [u8], mut in_quotes: bool) -> &'b [u8] {
        let end = block.iter().position(|byte| {
            in_quotes ^= *byte == b'"';
            *byte == b'\n' && !in_quotes
        });
        self.layout = Layout::Csv { in_quotes };
        let (record, rest) = block.split_at(end.unwrap_or(block.len()));
        self.append(record);
        if end.is_some() {
            self.end();
        }
        rest.get(1..).unwrap_or_default()
    }

    fn split_array<'b>(&mut self, block: &'b [u8], mut nesting: Nesting) -> &'b [u8] {
        let mut taken = 0;
        for byte in block {
            match nesting.step(*byte) {
                Step::Between => {
                    if taken > 0 || !self.partial.is_empty() || self.skipping {
                        break;
                    }
                    self.layout = Layout::Array(nesting);
                    return block.get(1..).unwrap_or_default();
                }
                Step::Within => taken += 1,
                Step::Last => {
                    taken += 1;
                    break;
                }
            }
        }
        let (part, rest) = block.split_at(taken);
        self.append(part);
        // The byte that ended the element stays in the rest, because it may begin the next element.
        if nesting.element_depth.is_none() {
            self.end();
        }
        self.layout = Layout::Array(nesting);
        rest
    }

    fn append(&mut self, part: &[u8]) {
        self.skipping |= self.partial.len() + part.len() > self.max_bytes;
        if self.skipping {
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(part);
        }
    }

    /// Ends a record. An empty record counts for the numbers, but is not returned.
    fn end(&mut self) {
        self.ended += 1;
        let text = std::mem::take(&mut self.partial);
        if std::mem::take(&mut self.skipping) {
            self.ready.push_back(Line {
                number: self.ended,
                text: None,
            });
        } else if !text.trim_ascii().is_empty() {
            self.ready.push_back(Line {
                number: self.ended,
                text: Some(text),
            });
        }
    }
}

/// Position of a byte relative to an element.
enum Step {
    /// The byte is between two elements.
    Between,
    Within,
    /// The byte is the last one of the element.
    Last,
}

impl Nesting {
    /// Advances by one byte.
    fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Step::Within;
        }
        let Some(element_depth) = self.element_depth else {
            match byte {
                b'[' if self.depth == 0 => self.depth = 1,
                b']' => self.depth = 0,
                b',' | b' ' | b'\t' | b'\r' | b'\n' => {}
                _ => {
                    self.element_depth = Some(self.depth);
                    return self.step(byte);
                }
            }
            return Step::Between;
        };
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > element_depth => {
                self.depth -= 1;
                if self.depth == element_depth {
                    self.element_depth = None;
                    return Step::Last;
                }
            }
            // A scalar has no closing byte of its own. It ends before the next separator.
            b',' | b']' | b'}' | b'\n' if self.depth == element_depth => {
                self.element_depth = None;
                if byte == b']' {
                    self.depth = 0;
                }
                return Step::Between;
            }
            _ => {}
        }
        Step::Within
    }
}

/// Converts a whole body to UTF-8 and removes its byte order mark.
pub fn decoded(body: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let (encoding, bom_bytes) = encoding(body);
    let body = body.get(bom_bytes..).unwrap_or_default();
    if encoding == UTF_8 {
        return body.into();
    }
    encoding
        .decode_without_bom_handling(body)
        .0
        .into_owned()
        .into_bytes()
        .into()
}

/// Detects the encoding by the first bytes. Returns it with the length of the byte order mark.
fn encoding(prefix: &[u8]) -> (&'static Encoding, usize) {
    match (Encoding::for_bom(prefix), prefix) {
        (Some(detected), _) => detected,
        // A brace or bracket in UTF-16 without a byte order mark.
        (None, [b'{' | b'[', 0, ..]) => (UTF_16LE, 0),
        (None, [0, b'{' | b'[', ..]) => (UTF_16BE, 0),
        (None, _) => (UTF_8, 0),
    }
}

/// Returns the separator of a CSV header, or `None` if the line is no header of records.
pub fn separator(line: &[u8]) -> Option<u8> {
    let line = std::str::from_utf8(line).ok()?.trim();
    b",;\t".iter().copied().find(|separator| {
        let mut names = line
            .split(char::from(*separator))
            .map(|name| name.trim().trim_matches('"'));
        names.any(|name| matches!(name, "retrieval_strategy" | "strategy"))
            && line.split(char::from(*separator)).count() > 1
            && !line.starts_with('{')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the records of `input`, which arrives in blocks of `size` bytes.
    fn split_input(input: &[u8], size: usize, accepts_csv: bool) -> Vec<(u64, Option<String>)> {
        let mut lines = Lines {
            accepts_csv,
            ..Lines::new(1000)
        };
        for block in input.chunks(size) {
            lines.push(block);
            assert!(lines.partial.len() <= 1000);
        }
        lines.finish();
        lines.finish();
        let text = |text: Vec<u8>| String::from_utf8(text).unwrap().trim().to_owned();
        std::iter::from_fn(|| lines.pop())
            .map(|line| (line.number, line.text.map(text)))
            .collect()
    }

    #[track_caller]
    fn assert_split(input: &[u8], accepts_csv: bool, expected: &[(u64, Option<&str>)]) {
        for size in [1, 2, 3, 7, 64 << 10] {
            let lines = split_input(input, size, accepts_csv);
            let lines: Vec<_> = lines
                .iter()
                .map(|(number, text)| (*number, text.as_deref()))
                .collect();
            assert_eq!(lines, expected, "in blocks of {size}");
        }
    }

    #[test]
    fn lines_are_the_same_wherever_the_input_is_divided() {
        let (long, most) = ("x".repeat(1001), "y".repeat(1000));
        let input = format!("one\n\n  \n{long}\n{most}\ntwo\r\nthree");
        let expected = [
            (1, Some("one")),
            (4, None),
            (5, Some(&*most)),
            (6, Some("two")),
            (7, Some("three")),
        ];
        assert_split(input.as_bytes(), false, &expected);
        assert_split(b"", false, &[]);
        assert_split(b"\n\n", false, &[]);
        assert_split(b"\n\n1", false, &[(3, Some("1"))]);
    }

    #[test]
    fn elements_of_an_array_are_records_however_it_is_written() {
        let one = r#"{"a": "],}\"[", "b": [1, {"c": []}]}"#;
        let expected = [
            (1, Some(one)),
            (2, Some("{}")),
            (3, Some("7")),
            (4, Some(r#""x,]""#)),
            (5, Some("[{}]")),
        ];
        for input in [
            format!(r#"[{one},{{}},7,"x,]",[{{}}]]"#),
            format!("  [\n  {one},\n  {{}}\n,7\n,\"x,]\"\n, [{{}}]\n]\n"),
            format!("[{one}]\n[{{}}, 7]\n[\"x,]\", [{{}}]]\n"),
        ] {
            assert_split(input.as_bytes(), false, &expected);
        }
        let long = format!(r#"[{{"a": "{}"}}, {{}}]"#, "x".repeat(1001));
        assert_split(long.as_bytes(), false, &[(1, None), (2, Some("{}"))]);
        assert_split(b"[{\"a\": 1", false, &[(1, Some("{\"a\": 1"))]);
        assert_split(b"[]", false, &[]);
    }

    #[test]
    fn byte_order_marks_and_wide_characters_are_read() {
        let text = "{\"a\": \"schlüssel 🔑\"}\n{}";
        let expected = [(1, Some("{\"a\": \"schlüssel 🔑\"}")), (2, Some("{}"))];
        assert_split(text.as_bytes(), false, &expected);
        assert_split(
            &[b"\xEF\xBB\xBF", text.as_bytes()].concat(),
            false,
            &expected,
        );
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for input in [
            little.clone(),
            big.clone(),
            [b"\xFF\xFE".to_vec(), little].concat(),
            [b"\xFE\xFF".to_vec(), big].concat(),
        ] {
            assert_split(&input, false, &expected);
        }
    }

    #[test]
    fn a_line_feed_within_quotes_belongs_to_its_record() {
        let input = "strategy,query_text\ns,\"two\nlines \"\"x\"\"\"\ns,y\n";
        let expected = [
            (1, Some("strategy,query_text")),
            (2, Some("s,\"two\nlines \"\"x\"\"\"")),
            (3, Some("s,y")),
        ];
        assert_split(input.as_bytes(), true, &expected);
        assert_split(b"\"a\n\"b\n", true, &[(1, Some("\"a")), (2, Some("\"b"))]);
    }

    #[test]
    fn line_of_names_tells_its_separator() {
        for (line, expected) in [
            ("failure_type,retrieval_strategy", Some(b',')),
            ("\"failure_type\";\"retrieval_strategy\"", Some(b';')),
            ("outcome\tstrategy\r", Some(b'\t')),
            ("{\"strategy\": 1, \"strategy\", 2}", None),
            ("strategy", None),
        ] {
            assert_eq!(separator(line.as_bytes()), expected, "{line}");
        }
    }
}
