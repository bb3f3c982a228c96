//! What `nc` is asked for: its words, apart from the network, so that they are tested everywhere.

use std::time::Duration;

use crate::command::Failure;

/// `nc [-l] [-z] [-v] [-u] [-w SECONDS] [-p PORT] [HOST] PORT [-e COMMAND …]`
#[derive(Debug, Default, PartialEq)]
pub struct Nc {
    pub listens: bool,
    /// Whether it listens on after the first connection.
    pub again: bool,
    /// Whether it only looks if somebody is there.
    pub probes: bool,
    pub udp: bool,
    pub verbose: bool,
    pub wait: Option<Duration>,
    pub host: Option<String>,
    pub port: u16,
    pub program: Vec<String>,
}

impl Nc {
    pub fn parse(words: &[String]) -> Result<Nc, Failure> {
        let mut nc = Nc::default();
        let (mut port, mut names) = (None, Vec::new());
        let mut words = words.iter().cloned();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                names.push(word);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                match letter {
                    'l' => nc.listens = true,
                    'k' => nc.again = true,
                    'z' => nc.probes = true,
                    'u' => nc.udp = true,
                    'v' => nc.verbose = true,
                    'n' | 'N' | 't' | '4' => {}
                    'q' | 'w' | 'p' => {
                        // The value is the rest of the word (`-w1`, `-zw1`), or the next one.
                        let rest = &letters[at + 1..];
                        let value =
                            if rest.is_empty() { words.next() } else { Some(rest.to_owned()) };
                        let missing = || Failure::usage(format!("-{letter} needs a value"));
                        let value = value.ok_or_else(missing)?;
                        match letter {
                            'w' => nc.wait = Some(seconds(&value)?),
                            'p' => port = Some(value),
                            _ => {}
                        }
                        break;
                    }
                    'e' | 'c' => nc.program = words.by_ref().collect(),
                    other => return Err(Failure::usage(format!("-{other}: unknown option"))),
                }
            }
        }
        if port.is_none() || !nc.listens {
            port = names.pop();
        }
        let number = port.and_then(|text| text.parse().ok());
        nc.port = number.ok_or_else(|| Failure::usage("which port?"))?;
        nc.host = names.into_iter().next();
        Ok(nc)
    }
}

fn seconds(text: &str) -> Result<Duration, Failure> {
    let bad = || Failure::usage(format!("{text}: not a number of seconds"));
    Duration::try_from_secs_f64(text.parse().map_err(|_| bad())?).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_their_letter_in_its_word_or_the_next() {
        let parsed = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            Nc::parse(&words).map_err(|failure| failure.message)
        };
        let probe = Nc {
            probes: true,
            wait: Some(Duration::from_secs(1)),
            host: Some("db".to_owned()),
            port: 5432,
            ..Nc::default()
        };
        for text in ["-z -w 1 db 5432", "-z -w1 db 5432", "-zw1 db 5432", "db 5432 -zw 1"] {
            assert_eq!(parsed(text).as_ref(), Ok(&probe), "{text}");
        }
        let program = ["echo", "-n", "hi"].map(str::to_owned).to_vec();
        let server = Nc { listens: true, again: true, port: 80, program, ..Nc::default() };
        for text in ["-lk -p 80 -e echo -n hi", "-lkp80 -e echo -n hi", "-lk 80 -e echo -n hi"] {
            assert_eq!(parsed(text).as_ref(), Ok(&server), "{text}");
        }
        assert_eq!(parsed("-zw"), Err("-w needs a value".to_owned()));
        assert_eq!(parsed("db"), Err("which port?".to_owned()));
    }
}
