//! Durations and sizes as people write them.

use std::time::Duration;

/// Reads `90s`, `15m`, `24h`, `7d`, `500ms` and sums such as `1h30m`. Returns whole milliseconds, which is the
/// precision of the stores.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} has no unit"));
    }
    // humantime reads `M` as a month, but in other notations `M` is a minute or a million.
    if text.contains('M') {
        return Err(format!("{text:?} could mean minutes or months: write `m` for minutes and `months` for months"));
    }
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let millis = u64::try_from(duration.as_millis()).map_err(|_| "it is too long".to_owned())?;
    Ok(Duration::from_millis(millis))
}

const UNITS: [(&str, usize); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// Reads `512B`, `64KiB`, `4MiB` or `10MB` as bytes.
pub(crate) fn size_in_bytes(text: &str) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("{text:?} does not begin with a number"));
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim())) else {
        let units: Vec<&str> = UNITS.iter().map(|(name, _)| *name).collect();
        return Err(match unit.trim() {
            "" => format!("{text:?} has no unit, which is one of {}", units.join(", ")),
            unit => format!("{unit:?} is no unit, which is one of {}", units.join(", ")),
        });
    };
    number
        .parse()
        .ok()
        .and_then(|number: usize| number.checked_mul(*factor))
        .ok_or_else(|| "it is too large".to_owned())
}
