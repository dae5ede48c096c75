//! Numbers that fields hold and that are added to them: 64-bit whole numbers, and decimals of up to 15 digits. Sums are
//! exact, and the same on every broker: a Redis script adds in the same way.

use std::fmt;

/// Digits of a decimal without leading zeros, and its decimals. Redis's scripts count exactly up to 2^53 only.
pub const MAX_DIGITS: u32 = 15;
/// Bytes of a text that may be read as a decimal. It may have zeros at its end.
pub const MAX_NUMBER_BYTES: usize = 40;

/// A number to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The number, times 10 to the power of `decimals`.
    units: i64,
    /// 0 for a whole number.
    decimals: u32,
}

/// The number is out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a 64-bit whole number, or a decimal of at most {MAX_DIGITS} digits")]
pub struct NumberError;

impl Number {
    /// Reads a number as JSON writes it, in any spelling: `1`, `1.0` and `10e-1` are the same.
    pub fn from_json(text: &str) -> Result<Self, NumberError> {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i64 = exponent.parse().map_err(|_| NumberError)?;
        let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |digits| ("-", digits));
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(decimals) {
            return Err(NumberError);
        }
        let all = format!("{whole}{decimals}");
        let digits = all.trim_end_matches('0');
        let exponent = exponent.saturating_sub_unsigned(decimals.len() as u64);
        let exponent = exponent.saturating_add_unsigned((all.len() - digits.len()) as u64);
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Ok(Self { units: 0, decimals: 0 });
        }
        if exponent >= 0 {
            // A 64-bit number has 19 digits.
            let zeros = usize::try_from(exponent).ok().filter(|zeros| *zeros < 19).ok_or(NumberError)?;
            let units = format!("{sign}{digits}{}", "0".repeat(zeros)).parse().map_err(|_| NumberError)?;
            return Ok(Self { units, decimals: 0 });
        }
        let decimals = exponent.unsigned_abs();
        if digits.len() > MAX_DIGITS as usize || decimals > u64::from(MAX_DIGITS) {
            return Err(NumberError);
        }
        let units = format!("{sign}{digits}").parse().map_err(|_| NumberError)?;
        Ok(Self { units, decimals: decimals.try_into().map_err(|_| NumberError)? })
    }

    /// Reads a field's value: digits, without zeros before them, and with a point between digits.
    fn from_value(value: &str) -> Option<Self> {
        let digits = value.strip_prefix('-').unwrap_or(value);
        let has_spare_zero = digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit());
        let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && !digits.ends_with('.');
        let is_valid = value.len() <= MAX_NUMBER_BYTES && is_plain && !has_spare_zero;
        is_valid.then(|| Self::from_json(value).ok()).flatten()
    }

    /// The sum of a field's value and this number, as text. None if the value is no number, or if the sum is out of range.
    ///
    /// Two whole numbers are read and added as Redis does it: 64 bits, no sign but `-`, no zeros before the digits. If one
    /// is a decimal, both numbers and the sum have at most [`MAX_DIGITS`] digits, with as many decimals as the one that has
    /// more.
    pub fn add_to(self, value: &[u8]) -> Option<String> {
        let value = std::str::from_utf8(value).ok()?;
        if self.decimals == 0 && !value.contains('.') {
            let number: i64 = value.parse().ok()?;
            return (number.to_string() == value)
                .then(|| number.checked_add(self.units))?
                .map(|sum| sum.to_string());
        }
        let other = Self::from_value(value)?;
        let decimals = self.decimals.max(other.decimals);
        let (left, right) = (self.scaled(decimals)?, other.scaled(decimals)?);
        Some(Self { units: within_digits(left + right)?, decimals }.to_string())
    }

    fn scaled(self, decimals: u32) -> Option<i64> {
        within_digits(self.units.checked_mul(10_i64.checked_pow(decimals - self.decimals)?)?)
    }
}

fn within_digits(units: i64) -> Option<i64> {
    const LIMIT: u64 = 10_u64.pow(MAX_DIGITS);
    (units.unsigned_abs() < LIMIT).then_some(units)
}

/// The shortest spelling: no zeros at the end of the decimals.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = self.decimals as usize;
        let digits = format!("{:0>width$}", self.units.unsigned_abs(), width = decimals + 1);
        let (whole, rest) = digits.split_at(digits.len() - decimals);
        let rest = rest.trim_end_matches('0');
        let sign = if self.units < 0 { "-" } else { "" };
        let point = if rest.is_empty() { "" } else { "." };
        write!(f, "{sign}{whole}{point}{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_json_has_one_spelling() {
        for (text, shown) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0e9999999", "0"),
            ("5", "5"),
            ("1.0", "1"),
            ("10e-1", "1"),
            ("1e-7", "0.0000001"),
            ("-2.50", "-2.5"),
            ("12E2", "1200"),
            ("9223372036854775807", "9223372036854775807"),
            ("-9.223372036854775808e18", "-9223372036854775808"),
            ("123456789.012345", "123456789.012345"),
        ] {
            assert_eq!(Number::from_json(text).unwrap().to_string(), shown, "{text}");
        }
        for text in
            ["9223372036854775808", "1e19", "1e99999999999999999999", "0.1234567890123456", "1e-16", "x", ""]
        {
            assert_eq!(Number::from_json(text), Err(NumberError), "{text}");
        }
    }
}
