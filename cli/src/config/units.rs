//! Sizes and times as people write them: `64KiB`, `1.5 GiB`, `30s`, `1h30m`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A time span.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A value, or `auto`: the component decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Auto<T>(pub Option<T>);

const SIZES: [(&str, u64); 13] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
];

const TIMES: [(&str, u64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("min", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// Splits `12.5KiB` into number and unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    (number, unit.trim())
}

fn scaled(number: &str, factor: u64) -> Option<u64> {
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let (whole, fraction) = number.split_once('.')?;
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let unit = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(factor) / unit;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// Reads a size.
///
/// # Errors
/// What a size looks like.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text.trim());
    let unit = unit.to_ascii_lowercase();
    let factor = SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    factor
        .and_then(|factor| scaled(number, factor))
        .ok_or_else(|| format!("{text:?} is no size; write for example 4096, 64KiB or 1.5GiB"))
}

/// Reads a time span.
///
/// # Errors
/// What a time span looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no time; write for example 500ms, 30s or 1h30m");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut micros = 0_u64;
    while !rest.is_empty() {
        let (number, after) = split(rest);
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let factor = TIMES.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?.1;
        let part = scaled(number, factor).ok_or_else(refuse)?;
        micros = micros.checked_add(part).ok_or_else(refuse)?;
        rest = next.trim_start();
    }
    if text.trim().is_empty() { Err(refuse()) } else { Ok(Duration::from_micros(micros)) }
}

/// Reads a time span that takes time.
///
/// # Errors
/// What a time span looks like, or that it is none.
pub fn parse_some_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match self.0 {
            bytes if whole(40) => write!(out, "{}TiB", bytes >> 40),
            bytes if whole(30) => write!(out, "{}GiB", bytes >> 30),
            bytes if whole(20) => write!(out, "{}MiB", bytes >> 20),
            bytes if whole(10) => write!(out, "{}KiB", bytes >> 10),
            bytes => write!(out, "{bytes}"),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        let units =
            [("d", 86_400_000_000_u128), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000)];
        for (unit, factor) in units.into_iter().chain([("ms", 1_000)]) {
            if micros != 0 && micros.is_multiple_of(factor) {
                return write!(out, "{}{unit}", micros / factor);
            }
        }
        if micros == 0 { write!(out, "0s") } else { write!(out, "{micros}us") }
    }
}

/// A size for people, rounded: `1.5 GiB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// `1 message`, `2,000 messages`.
#[must_use]
pub fn show_messages(count: u64) -> String {
    format!("{} message{}", show_count(count), if count == 1 { "" } else { "s" })
}

/// A number for people, in groups of three digits: `1,234,567`.
#[must_use]
pub fn show_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Reads the TOML forms: text with a unit, or a whole number in `number`'s unit.
struct Reader<F> {
    expected: &'static str,
    text: fn(&str) -> Result<F, String>,
    number: Option<fn(u64) -> F>,
}

impl<F> de::Visitor<'_> for Reader<F> {
    type Value = F;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<F, E> {
        (self.text)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<F, E> {
        match self.number {
            Some(number) => Ok(number(value)),
            None => Err(E::custom(format!("expected {}", self.expected))),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<F, E> {
        let whole = u64::try_from(value).map_err(|_| E::custom("it can't be below 0"))?;
        self.visit_u64(whole)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = |text: &str| parse_bytes(text).map(ByteSize);
        let expected = "a size like \"64KiB\", or a number of bytes";
        from.deserialize_any(Reader { expected, text, number: Some(ByteSize) })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = |text: &str| parse_duration(text).map(Span);
        from.deserialize_any(Reader { expected: "a time like \"30s\"", text, number: None })
    }
}

impl<'de> Deserialize<'de> for Auto<ByteSize> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = |text: &str| match text {
            "auto" => Ok(Auto(None)),
            _ => parse_bytes(text).map(|bytes| Auto(Some(ByteSize(bytes)))),
        };
        let expected = "\"auto\", or a size like \"64KiB\"";
        let number = Some((|bytes| Auto(Some(ByteSize(bytes)))) as fn(u64) -> Self);
        from.deserialize_any(Reader { expected, text, number })
    }
}

impl<'de> Deserialize<'de> for Auto<Span> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = |text: &str| match text {
            "auto" => Ok(Auto(None)),
            _ => parse_some_duration(text).map(|span| Auto(Some(Span(span)))),
        };
        from.deserialize_any(Reader {
            expected: "\"auto\", or a time like \"30s\"",
            text,
            number: None,
        })
    }
}

impl<'de> Deserialize<'de> for Auto<u32> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = |text: &str| match text {
            "auto" => Ok(Auto(None)),
            _ => match text.parse() {
                Ok(number) => Ok(Auto(Some(number))),
                Err(_) => Err(format!("{text:?} is neither \"auto\" nor a number")),
            },
        };
        // One that doesn't fit is above what any setting takes, and is refused as that.
        let number = |number| Auto(Some(u32::try_from(number).unwrap_or(u32::MAX)));
        from.deserialize_any(Reader {
            expected: "\"auto\", or a number",
            text,
            number: Some(number),
        })
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<T: fmt::Display> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => to.collect_str(value),
            None => to.serialize_str("auto"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes(" 64 KiB "), Ok(65_536));
        assert_eq!(parse_bytes("1.5gib"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("1MB"), Ok(1_000_000));
        for text in ["", "KiB", "-1", "1.KiB", "64 KiB more", "1e3", "99999999999999TiB"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "5", "s", "5 parsecs", "-1s", "1s,", "99999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_shown_as_people_read_them() {
        assert_eq!(
            (show_count(0), show_count(1_234_567)),
            ("0".to_owned(), "1,234,567".to_owned())
        );
        assert_eq!(
            (show_messages(1), show_messages(1_000)),
            ("1 message".to_owned(), "1,000 messages".to_owned())
        );
        assert_eq!(
            (show_bytes(1_023), show_bytes(1_536)),
            ("1023 B".to_owned(), "1.5 KiB".to_owned())
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: u64, micros in 0_u64..1 << 50) {
            prop_assert_eq!(parse_bytes(&ByteSize(bytes).to_string()), Ok(bytes));
            let span = Duration::from_micros(micros);
            prop_assert_eq!(parse_duration(&Span(span).to_string()), Ok(span));
        }

        #[test]
        fn no_text_makes_them_panic(text in ".{0,40}") {
            let _ = (parse_bytes(&text), parse_duration(&text));
        }
    }
}
