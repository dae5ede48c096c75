//! The form in which a client prefers a value (RFC 9110, section 12.5.1).

use std::cmp::Reverse;

use axum::http::{HeaderMap, header};

use crate::http::extract::list_members;
use crate::http::problem::{Code, Problem};

/// A form of a value in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueFormat {
    Json,
    Text,
    Bytes,
}

/// The media types of the forms. The first one of those that a client likes best is sent.
const OFFERS: [(ValueFormat, &str, &str); 3] = [
    (ValueFormat::Json, "application", "json"),
    (ValueFormat::Text, "text", "plain"),
    (ValueFormat::Bytes, "application", "octet-stream"),
];

/// A media range of `Accept`, as `text/*;q=0.5`.
struct MediaRange {
    kind: String,
    subtype: String,
    /// From 0, which means not acceptable, to 1000.
    weight: u16,
}

impl MediaRange {
    /// Parses a range. `None` if it is none. `*` alone, which older clients send, is `*/*`. A weight that can't be read
    /// counts as 1.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text).to_ascii_lowercase();
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = match parts.next()? {
            "*" => ("*", "*"),
            range => range.split_once('/')?,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(parse_weight).unwrap_or(1000);
        Some(Self { kind: kind.into(), subtype: subtype.into(), weight })
    }

    /// How closely the range names a type. `None` if it does not include the type.
    fn specificity(&self, kind: &str, subtype: &str) -> Option<u8> {
        match (self.kind.as_str(), self.subtype.as_str()) {
            ("*", "*") => Some(0),
            (own, "*") if own == kind => Some(1),
            (own, own_subtype) if own == kind && own_subtype == subtype => Some(2),
            _ => None,
        }
    }
}

/// Parses a weight: 0 to 1, of which three decimals count.
fn parse_weight(text: &str) -> Option<u16> {
    if !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let decimals = decimals.get(..3).unwrap_or(decimals);
    let weight = format!("{whole}{decimals:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

impl ValueFormat {
    /// Reads `Accept`: the form with the highest weight; of equal ones, the form whose range comes first. The most
    /// specific range decides about a form. A value that is not UTF-8 has no form as text.
    pub(super) fn from_headers(headers: &HeaderMap, value: &[u8]) -> Result<Self, Problem> {
        let ranges: Vec<_> = list_members(headers, &header::ACCEPT).map(MediaRange::parse).collect();
        if ranges.is_empty() {
            return Ok(Self::Json);
        }
        let is_text = std::str::from_utf8(value).is_ok();
        let offers = OFFERS.iter().enumerate().filter(|(_, (format, ..))| is_text || *format != Self::Text);
        let weighed = offers.filter_map(|(offer, (format, kind, subtype))| {
            let ranges = ranges.iter().enumerate().filter_map(|(at, range)| Some((at, range.as_ref()?)));
            let matching =
                ranges.filter_map(|(at, range)| Some((range.specificity(kind, subtype)?, Reverse(at), range)));
            let (_, at, range) = matching.max_by_key(|(specificity, at, _)| (*specificity, *at))?;
            (range.weight > 0).then_some((range.weight, at, Reverse(offer), *format))
        });
        let best = weighed.max_by_key(|(weight, at, offer, _)| (*weight, *at, *offer));
        best.map(|(.., format)| format).ok_or_else(|| {
            let detail = if is_text {
                "Accept excludes application/json, text/plain and application/octet-stream, \
                 and a value is sent as one of these"
            } else {
                "Accept excludes application/json and application/octet-stream, \
                 and a value that is not UTF-8 is sent as one of these"
            };
            Problem::new(Code::NotAcceptable, detail)
        })
    }
}
