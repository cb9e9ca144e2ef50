//! Divides a stream into records of bounded length: JSON lines, the elements of a JSON array, or the lines of CSV.

use std::collections::VecDeque;

use encoding_rs::{CoderResult, Decoder, Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// A record, and its place from 1: the number of its line, or of its element.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: u64,
    /// `None`: it is too long, and was skipped.
    pub(crate) text: Option<Vec<u8>>,
}

/// Records on their way in. Memory is bounded by the longest record and one block.
pub(crate) struct Lines {
    max_bytes: usize,
    takes_csv: bool,
    /// The first bytes, until they tell the encoding.
    first: Option<Vec<u8>>,
    decoder: Option<Decoder>,
    layout: Layout,
    begun: Vec<u8>,
    skipping: bool,
    /// Records that have ended, also empty ones.
    ended: u64,
    ready: VecDeque<Line>,
}

/// How records are divided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Nothing but space has come.
    Unknown,
    Lines,
    /// A line feed within quotes belongs to its record.
    Csv {
        in_quotes: bool,
    },
    Array(Nesting),
}

/// The place within JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Depth at which the element began.
    element: Option<usize>,
}

impl Lines {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            takes_csv: false,
            first: Some(Vec::new()),
            decoder: None,
            layout: Layout::Unknown,
            begun: Vec::new(),
            skipping: false,
            ended: 0,
            ready: VecDeque::new(),
        }
    }

    /// The same for input that may be CSV. The first record is the line of names then.
    #[cfg(feature = "cli")]
    pub(crate) fn or_csv(self) -> Self {
        Self { takes_csv: true, ..self }
    }

    #[cfg(feature = "cli")]
    pub(crate) fn are_csv(&self) -> bool {
        matches!(self.layout, Layout::Csv { .. })
    }

    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    pub(crate) fn next(&mut self) -> Option<Line> {
        self.ready.pop_front()
    }

    pub(crate) fn push(&mut self, block: &[u8]) {
        let Some(first) = &mut self.first else { return self.decode(block, false) };
        first.extend_from_slice(block);
        if first.len() >= 3 {
            self.begin();
        }
    }

    /// Ends the last record, which need not have a line feed.
    pub(crate) fn finish(&mut self) {
        self.begin();
        self.decode(&[], true);
        if self.skipping || !self.begun.is_empty() {
            self.end();
        }
    }

    fn begin(&mut self) {
        let Some(first) = self.first.take() else { return };
        let (encoding, mark) = encoding(&first);
        self.decoder = (encoding != UTF_8).then(|| encoding.new_decoder_without_bom_handling());
        self.decode(first.get(mark..).unwrap_or_default(), false);
    }

    fn decode(&mut self, block: &[u8], is_last: bool) {
        let Some(mut decoder) = self.decoder.take() else { return self.divide(block) };
        let mut rest = block;
        loop {
            let mut text = String::with_capacity(block.len() + 16);
            let (result, read, _) = decoder.decode_to_string(rest, &mut text, is_last);
            self.divide(text.as_bytes());
            rest = rest.get(read..).unwrap_or_default();
            if result == CoderResult::InputEmpty {
                break;
            }
        }
        if !is_last {
            self.decoder = Some(decoder);
        }
    }

    fn divide(&mut self, mut block: &[u8]) {
        while !block.is_empty() {
            block = match self.layout {
                Layout::Unknown => {
                    let space = block.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                    let (space, rest) = block.split_at(space);
                    self.ended += space.iter().filter(|byte| **byte == b'\n').count() as u64;
                    match rest.first() {
                        None => {}
                        Some(b'[') => (self.layout, self.ended) = (Layout::Array(Nesting::default()), 0),
                        Some(_) => self.layout = Layout::Lines,
                    }
                    rest
                }
                Layout::Lines => self.divide_line(block),
                Layout::Csv { in_quotes } => self.divide_csv(block, in_quotes),
                Layout::Array(nesting) => self.divide_array(block, nesting),
            };
        }
    }

    /// Takes the block up to a line feed. Returns the rest.
    fn divide_line<'b>(&mut self, block: &'b [u8]) -> &'b [u8] {
        let Some(end) = block.iter().position(|byte| *byte == b'\n') else {
            self.append(block);
            return &[];
        };
        let (line, rest) = block.split_at(end);
        self.append(line);
        if self.takes_csv && self.ended == 0 && separator(&self.begun).is_some() {
            self.layout = Layout::Csv { in_quotes: false };
        }
        self.end();
        rest.get(1..).unwrap_or_default()
    }

    fn divide_csv<'b>(&mut self, block: &'b [u8], mut in_quotes: bool) -> &'b [u8] {
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

    fn divide_array<'b>(&mut self, block: &'b [u8], mut nesting: Nesting) -> &'b [u8] {
        let mut taken = 0;
        for byte in block {
            match nesting.step(*byte) {
                Step::Between => {
                    if taken > 0 || !self.begun.is_empty() || self.skipping {
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
        // What ended the element is looked at once more, as the beginning of what comes after it.
        if nesting.element.is_none() {
            self.end();
        }
        self.layout = Layout::Array(nesting);
        rest
    }

    fn append(&mut self, part: &[u8]) {
        self.skipping |= self.begun.len() + part.len() > self.max_bytes;
        if self.skipping {
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(part);
        }
    }

    /// Ends a record. An empty one is counted, and not taken.
    fn end(&mut self) {
        self.ended += 1;
        let text = std::mem::take(&mut self.begun);
        if std::mem::take(&mut self.skipping) {
            self.ready.push_back(Line { number: self.ended, text: None });
        } else if !text.trim_ascii().is_empty() {
            self.ready.push_back(Line { number: self.ended, text: Some(text) });
        }
    }
}

/// What a byte is to the element that has begun.
enum Step {
    /// Between two elements.
    Between,
    Within,
    /// Its last byte.
    Last,
}

impl Nesting {
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
        let Some(begun) = self.element else {
            match byte {
                b'[' if self.depth == 0 => self.depth = 1,
                b']' => self.depth = 0,
                b',' | b' ' | b'\t' | b'\r' | b'\n' => {}
                _ => {
                    self.element = Some(self.depth);
                    return self.step(byte);
                }
            }
            return Step::Between;
        };
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > begun => {
                self.depth -= 1;
                if self.depth == begun {
                    self.element = None;
                    return Step::Last;
                }
            }
            // A value that is no object ends where the next one begins.
            b',' | b']' | b'}' | b'\n' if self.depth == begun => {
                self.element = None;
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

/// A whole body in UTF-8, without its byte order mark.
pub(crate) fn decoded(body: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let (encoding, mark) = encoding(body);
    let body = body.get(mark..).unwrap_or_default();
    if encoding == UTF_8 {
        return body.into();
    }
    encoding.decode_without_bom_handling(body).0.into_owned().into_bytes().into()
}

/// The encoding that the first bytes tell, and the length of a byte order mark.
fn encoding(first: &[u8]) -> (&'static Encoding, usize) {
    match (Encoding::for_bom(first), first) {
        (Some(told), _) => told,
        // A brace or bracket, in UTF-16 without a mark.
        (None, [b'{' | b'[', 0, ..]) => (UTF_16LE, 0),
        (None, [0, b'{' | b'[', ..]) => (UTF_16BE, 0),
        (None, _) => (UTF_8, 0),
    }
}

/// The separator of a line of names in CSV, if it is one.
pub(crate) fn separator(line: &[u8]) -> Option<u8> {
    let line = std::str::from_utf8(line).ok()?.trim();
    b",;\t".iter().copied().find(|separator| {
        let mut names = line.split(char::from(*separator)).map(|name| name.trim().trim_matches('"'));
        names.any(|name| matches!(name, "retrieval_strategy" | "strategy"))
            && line.split(char::from(*separator)).count() > 1
            && !line.starts_with('{')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of `input`, which comes in blocks of `size` bytes.
    fn divided(input: &[u8], size: usize, takes_csv: bool) -> Vec<(u64, Option<String>)> {
        let mut lines = Lines { takes_csv, ..Lines::new(1000) };
        for block in input.chunks(size) {
            lines.push(block);
            assert!(lines.begun.len() <= 1000);
        }
        lines.finish();
        lines.finish();
        let text = |text: Vec<u8>| String::from_utf8(text).unwrap().trim().to_owned();
        std::iter::from_fn(|| lines.next()).map(|line| (line.number, line.text.map(text))).collect()
    }

    #[track_caller]
    fn assert_divided(input: &[u8], takes_csv: bool, expected: &[(u64, Option<&str>)]) {
        for size in [1, 2, 3, 7, 64 << 10] {
            let divided = divided(input, size, takes_csv);
            let divided: Vec<_> = divided.iter().map(|(number, text)| (*number, text.as_deref())).collect();
            assert_eq!(divided, expected, "in blocks of {size}");
        }
    }

    #[test]
    fn lines_are_the_same_wherever_the_input_is_divided() {
        let (long, most) = ("x".repeat(1001), "y".repeat(1000));
        let input = format!("one\n\n  \n{long}\n{most}\ntwo\r\nthree");
        let expected = [(1, Some("one")), (4, None), (5, Some(&*most)), (6, Some("two")), (7, Some("three"))];
        assert_divided(input.as_bytes(), false, &expected);
        assert_divided(b"", false, &[]);
        assert_divided(b"\n\n", false, &[]);
        assert_divided(b"\n\n1", false, &[(3, Some("1"))]);
    }

    #[test]
    fn elements_of_an_array_are_records_however_it_is_written() {
        let one = r#"{"a": "],}\"[", "b": [1, {"c": []}]}"#;
        let expected = [(1, Some(one)), (2, Some("{}")), (3, Some("7")), (4, Some(r#""x,]""#)), (5, Some("[{}]"))];
        for input in [
            format!(r#"[{one},{{}},7,"x,]",[{{}}]]"#),
            format!("  [\n  {one},\n  {{}}\n,7\n,\"x,]\"\n, [{{}}]\n]\n"),
            format!("[{one}]\n[{{}}, 7]\n[\"x,]\", [{{}}]]\n"),
        ] {
            assert_divided(input.as_bytes(), false, &expected);
        }
        let long = format!(r#"[{{"a": "{}"}}, {{}}]"#, "x".repeat(1001));
        assert_divided(long.as_bytes(), false, &[(1, None), (2, Some("{}"))]);
        assert_divided(b"[{\"a\": 1", false, &[(1, Some("{\"a\": 1"))]);
        assert_divided(b"[]", false, &[]);
    }

    #[test]
    fn byte_order_marks_and_wide_characters_are_read() {
        let text = "{\"a\": \"schlüssel 🔑\"}\n{}";
        let expected = [(1, Some("{\"a\": \"schlüssel 🔑\"}")), (2, Some("{}"))];
        assert_divided(text.as_bytes(), false, &expected);
        assert_divided(&[b"\xEF\xBB\xBF", text.as_bytes()].concat(), false, &expected);
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for input in
            [little.clone(), big.clone(), [b"\xFF\xFE".to_vec(), little].concat(), [b"\xFE\xFF".to_vec(), big].concat()]
        {
            assert_divided(&input, false, &expected);
        }
    }

    #[test]
    fn a_line_feed_within_quotes_belongs_to_its_record() {
        let input = "strategy,query_text\ns,\"two\nlines \"\"x\"\"\"\ns,y\n";
        let expected = [(1, Some("strategy,query_text")), (2, Some("s,\"two\nlines \"\"x\"\"\"")), (3, Some("s,y"))];
        assert_divided(input.as_bytes(), true, &expected);
        assert_divided(b"\"a\n\"b\n", true, &[(1, Some("\"a")), (2, Some("\"b"))]);
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
