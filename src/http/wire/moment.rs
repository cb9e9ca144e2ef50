//! Moments in the formats of common languages, databases and logs.

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Parses a moment. Returns `None` if the text is not a moment or is ambiguous. A moment without an
/// offset is in UTC. A moment before 1970 becomes the beginning of 1970, because the log stores no
/// earlier times.
pub(crate) fn parse_moment(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let moment = match text.parse::<f64>() {
        Ok(number) => parse_unix(text, number)?,
        Err(_) => parse_text(text)?,
    };
    Some(moment.max(Timestamp::UNIX_EPOCH).into())
}

/// Parses Unix time in seconds, milliseconds, microseconds or nanoseconds. The size of the number
/// determines the unit: 1e11 seconds are in the year 5138, so larger numbers have a smaller unit.
fn parse_unix(text: &str, number: f64) -> Option<Timestamp> {
    let (per_second, nanoseconds) = match number.abs() {
        size if size < 1e11 => (1.0, 1_000_000_000),
        size if size < 1e14 => (1e3, 1_000_000),
        size if size < 1e17 => (1e6, 1000),
        _ => (1e9, 1),
    };
    match text.parse::<i128>() {
        Ok(whole) => Timestamp::from_nanosecond(whole.checked_mul(nanoseconds)?).ok(),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`as` saturates, and jiff checks the range"
        )]
        Err(_) => Timestamp::from_microsecond((number / per_second * 1e6).round() as i64)
            .ok()
            .filter(|_| number.is_finite()),
    }
}

/// Parses a moment that is not a number.
fn parse_text(text: &str) -> Option<Timestamp> {
    if let Ok(zoned) = jiff::fmt::rfc2822::parse(text) {
        return Some(zoned.timestamp());
    }
    // Go appends the reading of a monotonic clock.
    let text = text.split(" m=").next().unwrap_or(text);
    let (text, is_utc) = match ["Z", "z", " UTC", " GMT", " utc"]
        .iter()
        .find_map(|zone| text.strip_suffix(zone))
    {
        Some(rest) => (rest.trim_end(), true),
        None => (text, false),
    };
    // `2026-11-25 10:00:00 +0100` is clear despite the space, because the offset has a sign.
    let text = match text.rsplit_once(' ') {
        Some((moment, offset)) if offset.starts_with(['+', '-']) && moment.contains(':') => {
            format!("{moment}{offset}")
        }
        // `10:00:00 05:30` is ambiguous, because the offset has lost its sign.
        Some((date, time)) if date.contains(':') && time.contains(':') => return None,
        _ => text.to_owned(),
    };
    let text = text.replacen(',', ".", 1);
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    if has_offset(&text) {
        return None;
    }
    let _ = is_utc;
    text.parse::<DateTime>()
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

/// Returns `true` if a sign follows the time of day. The hyphens of the date do not count.
fn has_offset(text: &str) -> bool {
    text.find(':').is_some_and(|time| {
        text.get(time..)
            .is_some_and(|rest| rest.contains(['+', '-']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_write_a_moment_is_read() {
        let ten: SystemTime = "2026-11-25T10:00:00Z".parse::<Timestamp>().unwrap().into();
        for text in [
            "2026-11-25T10:00:00Z",
            "2026-11-25t10:00:00z",
            "2026-11-25 10:00:00Z",
            // Python: `str` of an aware and a naive `datetime`, and `isoformat`.
            "2026-11-25 10:00:00+00:00",
            "2026-11-25 11:00:00+01:00",
            "2026-11-25T10:00:00",
            "2026-11-25 10:00:00.000000",
            "2026-11-25 10:00:00,000",
            // Ruby and Go.
            "2026-11-25 10:00:00 UTC",
            "2026-11-25 15:30:00 +0530",
            "2026-11-25 10:00:00 +0000 UTC",
            "2026-11-25 10:00:00.000000000 +0000 UTC m=+0.000012",
            // Java.
            "2026-11-25T11:00:00+01:00[Europe/Paris]",
            "2026-11-25T10:00",
            // PostgreSQL.
            "2026-11-25 10:00:00+00",
            // HTTP and mail.
            "Wed, 25 Nov 2026 10:00:00 GMT",
            "Wed, 25 Nov 2026 11:00:00 +0100",
            // Unix time.
            "1795600800",
            "1795600800.0",
            "1795600800000",
            "1795600800000000",
            "1795600800000000000",
            " 2026-11-25T10:00:00Z ",
        ] {
            assert_eq!(parse_moment(text), Some(ten), "{text}");
        }
        let day: SystemTime = "2026-11-25T00:00:00Z".parse::<Timestamp>().unwrap().into();
        assert_eq!(parse_moment("2026-11-25"), Some(day));
        assert_eq!(
            parse_moment("1969-07-20T20:17:40Z"),
            Some(SystemTime::UNIX_EPOCH)
        );
    }

    #[test]
    fn what_is_no_moment_or_may_be_several_is_none() {
        for text in [
            "",
            "now",
            "yesterday",
            "10:00",
            "2026-11-25T10:00:00 05:30",
            "25.11.2026 10:00",
            "11/25/2026",
            "2026-13-01",
            "2026-11-25T25:00:00Z",
            "NaN",
            "inf",
            "1e300",
            "2026-11-25T10:00:00+99:00",
        ] {
            assert_eq!(parse_moment(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_a_reason_to_panic(text in "[0-9:TZ+., eUTCm=é-]{0,40}") {
            let _ = parse_moment(&text);
        }
    }
}
