//! Amounts that are a number, or a part of a whole: `maxSurge`, `maxUnavailable` and their like.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How much of `of` this is; a percentage is rounded up or down. `None` where it cannot be read,
/// which validation has refused.
pub fn of_whole(value: &IntOrString, of: i32, up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(count) => Some((*count).max(0)),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%')?.parse::<i32>().ok()?;
            Some(percent_of(percent.max(0), of, up))
        }
    }
}

/// So many hundredths of a whole.
pub fn percent_of(percent: i32, of: i32, up: bool) -> i32 {
    let hundredths = i64::from(percent) * i64::from(of);
    let whole = if up { (hundredths + 99) / 100 } else { hundredths / 100 };
    i32::try_from(whole).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_the_way_that_is_asked_for() {
        let percent = |text: &str, up| of_whole(&IntOrString::String(text.to_string()), 10, up);
        assert_eq!(percent("25%", true), Some(3));
        assert_eq!(percent("25%", false), Some(2));
        assert_eq!(percent("100%", false), Some(10));
        assert_eq!(percent("25", false), None);
        assert_eq!(of_whole(&IntOrString::Int(4), 10, true), Some(4));
        assert_eq!(of_whole(&IntOrString::Int(-4), 10, true), Some(0));
    }
}
