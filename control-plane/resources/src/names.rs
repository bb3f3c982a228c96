//! What names, labels and keys may look like, in Kubernetes' own sentences.
//!
//! Every check returns the list of complaints, empty when the value is good; the caller puts them
//! under the field's path. The sentences are part of the interface: tools and people search for
//! them.

/// Length that a generated name must not pass.
const NAME_LENGTH_MAX: usize = 63;
/// Random characters that are appended to a `generateName`.
const SUFFIX_LENGTH: usize = 5;
/// No vowels (no words by accident) and no characters that are easily taken for others.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

const LABEL_LENGTH_MAX: usize = 63;
const SUBDOMAIN_LENGTH_MAX: usize = 253;
const CONFIG_KEY_LENGTH_MAX: usize = 253;
const PORT_NAME_LENGTH_MAX: usize = 15;

const LABEL_FORM: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035_FORM: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORM: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SEARCH_DOMAIN_FORM: &str =
    r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const QUALIFIED_FORM: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const VALUE_FORM: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY_FORM: &str = "[-._a-zA-Z0-9]+";
const URL_PATH_FORM: &str = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";

/// Which names a kind accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain; most kinds.
    Subdomain,
    /// RFC 1123 label; namespaces.
    Label,
    /// RFC 1035 label, which starts with a letter; services.
    Label1035,
    /// Anything that can stand in a path; RBAC objects.
    PathSegment,
}

impl NameRule {
    /// Complaints about a whole name.
    pub fn check(self, name: &str) -> Vec<String> {
        match self {
            NameRule::Subdomain => subdomain(name),
            NameRule::Label => label(name),
            NameRule::Label1035 => label_1035(name),
            NameRule::PathSegment => path_segment(name),
        }
    }

    /// Complaints about a `generateName`: the beginning of a name, which may end in a dash.
    pub fn check_prefix(self, prefix: &str) -> Vec<String> {
        match self {
            NameRule::PathSegment => path_segment_prefix(prefix),
            _ if prefix.len() > 1 && prefix.ends_with('-') => {
                self.check(&format!("{}a", &prefix[..prefix.len() - 1]))
            }
            _ => self.check(prefix),
        }
    }
}

/// A name made from a `generateName`. `random(n)` must give a number below `n`.
pub fn generate_name(base: &str, random: &mut impl FnMut(usize) -> usize) -> String {
    let mut end = base.len().min(NAME_LENGTH_MAX - SUFFIX_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_string();
    name.push_str(&random_suffix(SUFFIX_LENGTH, random));
    name
}

/// Characters fit for the end of a generated name. `random(n)` must give a number below `n`.
pub fn random_suffix(length: usize, random: &mut impl FnMut(usize) -> usize) -> String {
    let mut pick = || char::from(SUFFIX_ALPHABET[random(SUFFIX_ALPHABET.len())]);
    (0..length).map(|_| pick()).collect()
}

/// A number in the alphabet of generated names, digit by digit, as `pod-template-hash` shows its
/// hash.
pub fn safe_encode(digits: &str) -> String {
    let encode = |byte: u8| char::from(SUFFIX_ALPHABET[usize::from(byte) % SUFFIX_ALPHABET.len()]);
    digits.bytes().map(encode).collect()
}

/// RFC 1123 label: `web`.
pub fn label(value: &str) -> Vec<String> {
    let sentence = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters \
        or '-', and must start and end with an alphanumeric character";
    let mut complaints = too_long(value, LABEL_LENGTH_MAX);
    if !is_label(value) {
        complaints.push(form(sentence, LABEL_FORM, &["my-name", "123-abc"]));
    }
    complaints
}

/// RFC 1035 label: as above, but it starts with a letter.
pub fn label_1035(value: &str) -> Vec<String> {
    let sentence = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
        start with an alphabetic character, and end with an alphanumeric character";
    let mut complaints = too_long(value, LABEL_LENGTH_MAX);
    if !is_label(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        complaints.push(form(sentence, LABEL_1035_FORM, &["my-name", "abc-123"]));
    }
    complaints
}

/// RFC 1123 subdomain: labels joined by dots.
pub fn subdomain(value: &str) -> Vec<String> {
    let sentence = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
        characters, '-' or '.', and must start and end with an alphanumeric character";
    let mut complaints = too_long(value, SUBDOMAIN_LENGTH_MAX);
    if !value.split('.').all(is_label) {
        complaints.push(form(sentence, SUBDOMAIN_FORM, &["example.com"]));
    }
    complaints
}

/// `*.example.com`.
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let sentence = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS \
        subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end \
        with an alphanumeric character";
    let mut complaints = too_long(value, SUBDOMAIN_LENGTH_MAX);
    if !value.strip_prefix("*.").is_some_and(|name| name.split('.').all(is_label)) {
        let pattern = format!(r"\*\.{SUBDOMAIN_FORM}");
        complaints.push(form(sentence, &pattern, &["*.example.com"]));
    }
    complaints
}

/// A search domain of a resolver: a subdomain with underscores within labels, or one before them.
pub fn search_domain(value: &str) -> Vec<String> {
    let sentence = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
        characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let fits = |label: &str| is_label(&label.strip_prefix('_').unwrap_or(label).replace('_', "-"));
    let mut complaints = too_long(value, SUBDOMAIN_LENGTH_MAX);
    if !value.split('.').all(fits) {
        complaints.push(form(sentence, SEARCH_DOMAIN_FORM, &["example.com"]));
    }
    complaints
}

/// The path of a name with a domain before it, such as `foo/bar-1`.
pub fn url_path(value: &str) -> Vec<String> {
    let is_good = |character: char| {
        character.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(character)
    };
    if !value.is_empty() && value.chars().all(is_good) {
        return Vec::new();
    }
    vec![format!("Invalid path (regex used for validation is '{URL_PATH_FORM}')")]
}

/// Whether this is an IP address and the length of a prefix: `10.9.8.0/24`.
pub fn is_cidr(value: &str) -> bool {
    let Some((address, bits)) = value.split_once('/') else {
        return false;
    };
    let bits_max = if address.contains(':') { 128 } else { 32 };
    let is_number = !bits.is_empty() && bits.bytes().all(|digit| digit.is_ascii_digit());
    address.parse::<std::net::IpAddr>().is_ok()
        && is_number
        && bits.parse::<u8>().is_ok_and(|bits| bits <= bits_max)
}

/// A segment of a URL path: RBAC names.
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    path_segment_prefix(value)
}

fn path_segment_prefix(value: &str) -> Vec<String> {
    let banned = ["/", "%"].into_iter().filter(|part| value.contains(part));
    banned.map(|part| format!("may not contain '{part}'")).collect()
}

/// A label key, an annotation key, a resource name: `name` or `example.com/name`.
pub fn qualified(value: &str) -> Vec<String> {
    let examples = &["MyName", "my.name", "123-abc"];
    let sentence = "must consist of alphanumeric characters, '-', '_' or '.', and must start and \
        end with an alphanumeric character";
    let whole = || {
        let form = form(sentence, QUALIFIED_FORM, examples);
        format!(
            "a qualified name {form} with an optional DNS subdomain prefix and '/' \
             (e.g. 'example.com/MyName')"
        )
    };
    let mut complaints = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        ["", name] => {
            complaints.push("prefix part must be non-empty".to_string());
            name
        }
        [prefix, name] => {
            complaints.extend(subdomain(prefix).iter().map(|text| format!("prefix part {text}")));
            name
        }
        _ => return vec![whole()],
    };
    if name.is_empty() {
        complaints.push("name part must be non-empty".to_string());
    }
    let long = too_long(name, LABEL_LENGTH_MAX);
    complaints.extend(long.iter().map(|text| format!("name part {text}")));
    if !is_qualified_part(name) {
        complaints.push(format!("name part {}", form(sentence, QUALIFIED_FORM, examples)));
    }
    complaints
}

/// The value of a label; may be empty.
pub fn label_value(value: &str) -> Vec<String> {
    let sentence = "a valid label must be an empty string or consist of alphanumeric characters, \
        '-', '_' or '.', and must start and end with an alphanumeric character";
    let mut complaints = too_long(value, LABEL_LENGTH_MAX);
    if !value.is_empty() && !is_qualified_part(value) {
        complaints.push(form(sentence, VALUE_FORM, &["MyValue", "my_value", "12345"]));
    }
    complaints
}

/// A key in the data of a ConfigMap or Secret; becomes a file name.
pub fn config_key(value: &str) -> Vec<String> {
    let sentence = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
    let mut complaints = too_long(value, CONFIG_KEY_LENGTH_MAX);
    if value.is_empty() || !value.bytes().all(is_config_byte) {
        complaints.push(form(sentence, CONFIG_KEY_FORM, &["key.name", "KEY_NAME", "key-name"]));
    }
    match value {
        "." | ".." => complaints.push(format!("must not be '{value}'")),
        _ if value.starts_with("..") => complaints.push("must not start with '..'".to_string()),
        _ => {}
    }
    complaints
}

/// The name of an environment variable: printable ASCII except `=`.
pub fn environment_variable(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["must be non-empty".to_string()];
    }
    let good = value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=');
    if good {
        return Vec::new();
    }
    let sentence = "a valid environment variable name must consist only of printable ASCII \
        characters other than '='";
    vec![sentence.to_string()]
}

/// The name of a port.
pub fn port_name(value: &str) -> Vec<String> {
    let mut complaints = too_long(value, PORT_NAME_LENGTH_MAX);
    let in_alphabet = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let rules = [
        (
            value.is_empty() || !value.chars().all(in_alphabet),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            !value.contains(|c: char| c.is_ascii_lowercase()),
            "must contain at least one letter (a-z)",
        ),
        (value.contains("--"), "must not contain consecutive hyphens"),
        (value.starts_with('-') || value.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    let broken = rules.iter().filter(|(broken, _)| *broken);
    complaints.extend(broken.map(|(_, sentence)| (*sentence).to_string()));
    complaints
}

/// A port number.
pub fn port_number(value: i64) -> Vec<String> {
    if (1..=65535).contains(&value) {
        return Vec::new();
    }
    vec!["must be between 1 and 65535, inclusive".to_string()]
}

/// An IPv4 or IPv6 address.
pub fn ip_address(value: &str) -> Vec<String> {
    if value.parse::<std::net::IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_string()]
}

/// The sentence about a form, its examples and its pattern, laid out as Kubernetes does.
fn form(sentence: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{sentence} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn too_long(value: &str, limit: usize) -> Vec<String> {
    if value.len() <= limit {
        return Vec::new();
    }
    vec![format!("must be no more than {limit} characters")]
}

fn is_label(value: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_letter(*first)
        && is_letter(*last)
        && bytes.iter().all(|byte| is_letter(*byte) || *byte == b'-')
}

fn is_qualified_part(value: &str) -> bool {
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().copied().all(is_config_byte)
}

fn is_config_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testscript;

    #[test]
    fn which_names_are_good() {
        let rules =
            [NameRule::Subdomain, NameRule::Label, NameRule::Label1035, NameRule::PathSegment];
        let cases = [
            ("web", [true, true, true, true]),
            ("1web", [true, true, false, true]),
            ("a.b", [true, false, false, true]),
            ("a..b", [false, false, false, true]),
            ("-a", [false, false, false, true]),
            ("a-", [false, false, false, true]),
            ("A", [false, false, false, true]),
            ("system:a", [false, false, false, true]),
            ("a/b", [false, false, false, false]),
            (".", [false, false, false, false]),
            ("", [false, false, false, true]),
        ];
        for (name, expected) in cases {
            let found = rules.map(|rule| rule.check(name).is_empty());
            assert_eq!(found, expected, "{name:?}");
        }
        assert!(NameRule::Label.check_prefix("web-").is_empty());
        assert!(!NameRule::Label.check_prefix("Web-").is_empty());
    }

    #[test]
    fn sentences() {
        testscript::check("names.txt", |case| {
            let (rule, value) = case[0];
            // `""` stands for the empty text.
            let value = if value == "\"\"" { "" } else { value };
            let complaints = match rule {
                "label" => label(value),
                "label_1035" => label_1035(value),
                "subdomain" => subdomain(value),
                "path_segment" => path_segment(value),
                "qualified" => qualified(value),
                "label_value" => label_value(value),
                "config_key" => config_key(value),
                "environment_variable" => environment_variable(value),
                "port_name" => port_name(value),
                "ip_address" => ip_address(value),
                "search_domain" => search_domain(value),
                other => panic!("{other} is no rule"),
            };
            if complaints.is_empty() { "ok".to_string() } else { complaints.join("\n") }
        });
    }

    #[test]
    fn generated_names_fit() {
        let mut next = 0;
        let mut random = |bound: usize| {
            next += 1;
            next % bound
        };
        assert_eq!(generate_name("web-", &mut random), "web-cdfgh");
        assert_eq!(generate_name(&"x".repeat(80), &mut random).len(), 63);
        assert_eq!(safe_encode("0129"), "456f");
    }
}
