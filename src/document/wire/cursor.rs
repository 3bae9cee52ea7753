//! The protobuf wire format: fields of a message, one after the other.

use super::number;
use crate::document::Timestamp;
use crate::document::canonical::NANOS_PER_SECOND;

/// A part of the message: positions, so that the scratch buffer outlives it. Messages stay far below 4 GiB.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Result<Self, &'static str> {
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => Ok(Self { start, end }),
            _ => Err("it is larger than 4 GiB"),
        }
    }

    #[inline]
    pub(super) fn of(self, wire: &[u8]) -> &[u8] {
        &wire[self.start as usize..self.end as usize]
    }
}

/// The tag of a delimited field with a number below 16.
#[inline]
pub(super) const fn tag(number: u32) -> u8 {
    (number << 3 | 2) as u8
}

/// What stands behind a tag.
#[derive(Clone, Copy)]
pub(super) enum Payload {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Delimited { start: usize, end: usize },
}

const WRONG_TYPE: &str = "a field has the wrong wire type";
const CUT_OFF: &str = "it is cut off";

impl Payload {
    #[inline]
    pub(super) fn varint(self) -> Result<u64, &'static str> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    pub(super) fn fixed64(self) -> Result<u64, &'static str> {
        match self {
            Self::Fixed64(value) => Ok(value),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    pub(super) fn span(self) -> Result<Span, &'static str> {
        match self {
            Self::Delimited { start, end } => Span::new(start, end),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    pub(super) fn bytes(self, wire: &[u8]) -> Result<&[u8], &'static str> {
        match self {
            Self::Delimited { start, end } => Ok(&wire[start..end]),
            _ => Err(WRONG_TYPE),
        }
    }

    #[inline]
    pub(super) fn text(self, wire: &[u8]) -> Result<&str, &'static str> {
        std::str::from_utf8(self.bytes(wire)?).map_err(|_| "a text is not UTF-8")
    }
}

/// Reads the fields of one message, which lies within `wire`.
pub(super) struct Cursor<'w> {
    wire: &'w [u8],
    /// The whole message's bytes up to the end of this one: positions are those of the whole.
    window: &'w [u8],
    at: usize,
}

impl<'w> Cursor<'w> {
    pub(super) fn new(wire: &'w [u8]) -> Self {
        Self {
            wire,
            window: wire,
            at: 0,
        }
    }

    #[inline]
    pub(super) fn over(wire: &'w [u8], span: Span) -> Self {
        Self {
            wire,
            window: &wire[..span.end as usize],
            at: span.start as usize,
        }
    }

    /// The next field, if it is the delimited one with this tag and its length takes two bytes at most; else
    /// nothing has been read, and [`field`](Self::field) knows what it is.
    #[inline]
    pub(super) fn delimited(&mut self, tag: u8) -> Option<Span> {
        let (start, length) = match self.window.get(self.at..)? {
            [first, length, ..] if *first == tag && *length < 0x80 => (self.at + 2, usize::from(*length)),
            [first, low, high, ..] if *first == tag && *high < 0x80 => {
                (self.at + 3, usize::from(*low & 0x7f) | usize::from(*high) << 7)
            }
            _ => return None,
        };
        let end = start + length;
        if end > self.window.len() {
            return None;
        }
        let span = Span::new(start, end).ok()?;
        self.at = end;
        Some(span)
    }

    /// A `google.protobuf.Timestamp` that has both of its numbers, as most have; `None` says nothing about others.
    #[inline]
    pub(super) fn usual_time(&self, span: Span) -> Option<Timestamp> {
        const SECONDS: u8 = (number::TIMESTAMP_SECONDS << 3) as u8;
        const NANOS: u8 = (number::TIMESTAMP_NANOS << 3) as u8;
        let mut time = Cursor::over(self.wire, span);
        let seconds = time.number(SECONDS)?;
        let nanos = time.number(NANOS)?;
        (nanos < u64::from(NANOS_PER_SECOND) && time.is_at_end())
            .then(|| Timestamp::new(seconds as i64, nanos as u32))
    }

    #[inline]
    fn number(&mut self, tag: u8) -> Option<u64> {
        if *self.window.get(self.at)? != tag {
            return None;
        }
        self.at += 1;
        self.varint().ok()
    }

    /// The next of the message's fields with this number, which is delimited and repeated; others are skipped.
    #[inline]
    pub(super) fn repeated(&mut self, number: u32) -> Result<Option<Span>, &'static str> {
        if let Some(span) = self.delimited(tag(number)) {
            return Ok(Some(span));
        }
        while let Some((field, payload)) = self.field()? {
            if field == number {
                return payload.span().map(Some);
            }
        }
        Ok(None)
    }

    #[inline]
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.window.len()
    }

    /// The next field's number and payload, `None` at the end.
    #[inline]
    pub(super) fn field(&mut self) -> Result<Option<(u32, Payload)>, &'static str> {
        if self.at == self.window.len() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_| "a field's tag is too large")?;
        let field = tag >> 3;
        if field == 0 {
            return Err("a field has the number 0");
        }
        let payload = match tag & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => {
                let end = self.advance(8)?;
                let bytes = self.window[..end].last_chunk::<8>().ok_or(CUT_OFF)?;
                Payload::Fixed64(u64::from_le_bytes(*bytes))
            }
            2 => {
                let length = self.varint()?;
                let start = self.at;
                let end = self.advance(usize::try_from(length).map_err(|_| CUT_OFF)?)?;
                Payload::Delimited { start, end }
            }
            5 => {
                self.advance(4)?;
                Payload::Fixed32
            }
            3 | 4 => return Err("it holds a group"),
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some((field, payload)))
    }

    #[inline]
    fn advance(&mut self, length: usize) -> Result<usize, &'static str> {
        if length > self.window.len() - self.at {
            return Err(CUT_OFF);
        }
        self.at += length;
        Ok(self.at)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, &'static str> {
        match self.window.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    #[inline]
    fn long_varint(&mut self) -> Result<u64, &'static str> {
        const LAST: u64 = 0x8080_8080_8080_8080;
        if let Some(word) = self.next_eight()
            && !word & LAST != 0
        {
            // Up to the first byte without the upper bit, and its seven lower bits each, put together by halves: how
            // long numbers are is not to be foreseen, and a loop that guesses is slow.
            let bits = (!word & LAST).trailing_zeros() + 1;
            let end = self.at + bits as usize / 8;
            if end > self.window.len() {
                return Err(CUT_OFF);
            }
            self.at = end;
            let word = word & (u64::MAX >> (u64::BITS - bits));
            let word = word & 0x007f_007f_007f_007f | (word & 0x7f00_7f00_7f00_7f00) >> 1;
            let word = word & 0x0000_3fff_0000_3fff | (word & 0x3fff_0000_3fff_0000) >> 2;
            return Ok(word & 0x0fff_ffff | (word & 0x0fff_ffff_0000_0000) >> 4);
        }
        self.longest_varint()
    }

    /// The next eight bytes, the first the lowest; zeros stand for those past the end.
    #[inline]
    fn next_eight(&self) -> Option<u64> {
        let rest = &self.window[self.at..];
        if let Some(bytes) = rest.first_chunk::<8>() {
            return Some(u64::from_le_bytes(*bytes));
        }
        let bytes = self.window.last_chunk::<8>().filter(|_| !rest.is_empty())?;
        Some(u64::from_le_bytes(*bytes) >> (8 * (8 - rest.len())))
    }

    #[cold]
    fn longest_varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.window.get(self.at).ok_or(CUT_OFF)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number has more than 64 bits")
    }

    /// The `google.protobuf.Timestamp` in a field of this message, merged into an earlier one of the same field.
    pub(super) fn time(
        &self,
        payload: Payload,
        earlier: Option<Timestamp>,
    ) -> Result<Timestamp, &'static str> {
        let mut time = earlier.unwrap_or_default();
        let mut cursor = Cursor::over(self.wire, payload.span()?);
        while let Some((field, payload)) = cursor.field()? {
            match field {
                number::TIMESTAMP_SECONDS => time.seconds = payload.varint()? as i64,
                number::TIMESTAMP_NANOS => {
                    let nanos = payload.varint()?;
                    if nanos >= u64::from(NANOS_PER_SECOND) {
                        return Err("a timestamp's nanoseconds are negative or a second and more");
                    }
                    time.nanos = nanos as u32;
                }
                _ => {}
            }
        }
        Ok(time)
    }
}
