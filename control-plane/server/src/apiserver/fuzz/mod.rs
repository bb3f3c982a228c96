//! Fuzzing: everything that reads what clients send, fed with what no client should send.
//!
//! `make fuzz MINUTES=10` gives each target that long; an ordinary test run gives each a few
//! thousand inputs. A target says what came of an input (its *outcome*, such as an error's text) or
//! what must not have come of it (a *finding*); a panic, and an input that takes too long, are
//! findings too. Inputs are mutations of seeds, most of them bodies of the golden scripts; one that
//! leads to an outcome not seen before becomes a seed itself, so a run works its way into the code
//! without needing a compiler that counts branches. A run prints its seed, which repeats it.

mod requests;
mod targets;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Inputs of a target when no time is given.
const EXECUTIONS: u64 = 3_000;
/// Longest input: enough for every structure, small enough for speed.
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// Seeds kept; beyond it a new one takes a random one's place.
const SEEDS_MAX: usize = 4_000;
/// What one small input may take on a machine that stands still for a while.
const SLOW: Duration = Duration::from_secs(30);
/// Findings that are shown.
const SHOWN_MAX: usize = 5;

/// Chance that can be repeated: xorshift.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or_default()
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// How long a run goes on, and what it has seen.
pub struct Run {
    name: &'static str,
    seed: u64,
    pub chance: Chance,
    until: Option<Instant>,
    executions: u64,
    seeds: Vec<Vec<u8>>,
    outcomes: HashSet<String>,
    findings: Vec<String>,
    words: &'static [&'static str],
}

impl Run {
    /// A run over these seeds; `words` are put in where they may matter.
    pub fn new(name: &'static str, seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> Run {
        let number = |name: &str| std::env::var(name).ok()?.parse::<f64>().ok();
        let minutes = number("WHERRY_FUZZ_MINUTES");
        let chosen = number("WHERRY_FUZZ_SEED").map(|seed| seed as u64);
        // Timed runs look at something else each time; tests do not.
        let seed = chosen.unwrap_or_else(|| match minutes {
            Some(_) => rand::random::<u64>() >> 12,
            None => 1,
        });
        let until = minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
        let chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        Run {
            name,
            seed,
            chance,
            until,
            executions: 0,
            seeds,
            outcomes: HashSet::new(),
            findings: Vec::new(),
            words,
        }
    }

    /// The next input, while there is time.
    pub fn input(&mut self) -> Option<Vec<u8>> {
        let goes_on = match self.until {
            Some(until) => Instant::now() < until,
            None => self.executions < EXECUTIONS,
        };
        if !goes_on || self.findings.len() >= SHOWN_MAX {
            return None;
        }
        self.executions += 1;
        let index = usize::try_from(self.executions - 1).unwrap_or(usize::MAX);
        // Each seed as it is, first.
        if let Some(seed) = self.seeds.get(index) {
            return Some(seed.clone());
        }
        let mut input = self.chance.pick(&self.seeds).clone();
        for _ in 0..=self.chance.below(5) {
            self.mutate(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        Some(input)
    }

    /// Takes in what came of an input.
    pub fn heard(&mut self, input: &[u8], took: Duration, outcome: Result<String, String>) {
        let outcome = match took > SLOW {
            true => Err(format!("took {took:?}")),
            false => outcome,
        };
        match outcome {
            Ok(outcome) => {
                let plain: String = outcome.chars().filter(|c| !c.is_ascii_digit()).collect();
                if self.outcomes.insert(plain) {
                    if self.seeds.len() < SEEDS_MAX {
                        self.seeds.push(input.to_vec());
                    } else {
                        let at = self.chance.below(SEEDS_MAX);
                        self.seeds[at] = input.to_vec();
                    }
                }
            }
            Err(finding) => {
                let shown = String::from_utf8_lossy(input);
                self.findings.push(format!("{finding}\n  input: {shown:?}"));
            }
        }
    }

    /// Says what the run has done; fails if it found something.
    pub fn end(self) {
        let Run { name, seed, executions, outcomes, findings, .. } = self;
        println!(
            "fuzz {name:10} {executions:9} executions  {:6} outcomes  {} findings  (seed {seed})",
            outcomes.len(),
            findings.len()
        );
        assert!(findings.is_empty(), "{name}, seed {seed}:\n{}", findings.join("\n"));
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let chance = &mut self.chance;
        let at = chance.below(input.len() + 1);
        let end = (at + 1 + chance.below(16)).min(input.len());
        let range = at.min(end)..end;
        match chance.below(10) {
            0 if !range.is_empty() => input[range.start] ^= 1 << chance.below(8),
            1 if !range.is_empty() => {
                input[range.start] =
                    *chance.pick(b"\0\x01\x7f\x80\xff \n\t\"'\\/{}[]:,.-+$%&*#|~0e");
            }
            2 => drop(input.drain(range)),
            3 => {
                let piece = input[range].repeat(1 + chance.below(8));
                input.splice(at..at, piece);
            }
            4 | 5 => {
                let word = chance.pick(self.words).as_bytes().to_vec();
                input.splice(at..at, word);
            }
            6 => {
                let word = chance.pick(self.words).as_bytes().to_vec();
                input.splice(range, word);
            }
            7 => {
                let other = &self.seeds[chance.below(self.seeds.len())];
                let from = chance.below(other.len() + 1);
                let piece = other[from..].to_vec();
                input.truncate(at);
                input.extend(piece);
            }
            8 => {
                let other = &self.seeds[chance.below(self.seeds.len())];
                let from = chance.below(other.len() + 1);
                let piece = other[from..(from + 24).min(other.len())].to_vec();
                input.splice(at..at, piece);
            }
            _ => number(input, at, chance),
        }
    }
}

/// Puts an extreme number where one stands.
fn number(input: &mut Vec<u8>, from: usize, chance: &mut Chance) {
    let numbers = [
        "0",
        "-1",
        "1",
        "255",
        "2147483648",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551616",
        "1e309",
        "1.5",
        "-0",
        "1E5",
        "0x10",
        "007",
        "1_000",
    ];
    let digit = |index: &usize| input[*index].is_ascii_digit();
    let Some(start) = (from..input.len()).find(digit) else { return };
    let end = (start..input.len()).find(|index| !digit(index)).unwrap_or(input.len());
    input.splice(start..end, chance.pick(&numbers).bytes());
}

/// Runs a target that needs nothing but its input.
fn run(
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
    target: impl Fn(&[u8]) -> Result<String, String>,
) {
    let mut run = Run::new(name, seeds, words);
    while let Some(input) = run.input() {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let outcome =
            outcome.unwrap_or_else(|panic| Err(format!("a panic: {}", words_of(&*panic))));
        run.heard(&input, begun.elapsed(), outcome);
    }
    run.end();
}

/// What a panic said.
fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?").to_owned()
}
