//! Draws values from a target's bytes. After the last byte, it draws zeros.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, StatusCode};
use idempotent_runtime::{Fingerprint, Record, RecordedBody};

pub(crate) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// A slice of bytes, whose length the next byte gives.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    /// Text from a slice whose length the next byte gives. Invalid UTF-8 is replaced.
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    pub(crate) fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.byte() & 1 == 1).then(|| value(self))
    }

    pub(crate) fn long(&mut self) -> i64 {
        i64::from_le_bytes(self.array())
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Any response that `http` allows, recorded at any time that the text form can express.
    pub(crate) fn record(&mut self) -> Record {
        const YEAR_10000: u64 = 253_402_300_800_000;
        let status = 100 + u16::from_le_bytes(self.array()) % 900;
        let fingerprint = Fingerprint::from_bytes(self.array());
        let recorded_at = UNIX_EPOCH + Duration::from_millis(u64::from_le_bytes(self.array()) % YEAR_10000);
        let headers: Vec<_> = (0..self.byte() % 8).filter_map(|_| self.header()).collect();
        let body = match self.byte() % 8 {
            0 => RecordedBody::NotRecorded,
            1 => RecordedBody::Sealed(self.rest().to_vec().into()),
            _ => RecordedBody::Whole(self.rest().to_vec().into()),
        };
        let status = StatusCode::from_u16(status).expect("100 to 999");
        let headers = if matches!(body, RecordedBody::Sealed(_)) { Vec::new() } else { headers };
        Record::new(status, headers, body, fingerprint, recorded_at)
    }

    fn header(&mut self) -> Option<(HeaderName, HeaderValue)> {
        let (name, value) = (self.bytes(), self.bytes());
        Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
    }
}
