//! Per-key linearizability by values alone: is there an order of a key's calls, each at one moment
//! between its sending and its answer, in which every answer is right? Linearizability is local, so
//! that every key may be searched for itself, and a list counts as a read of each key.
//!
//! The search is Wing and Gong's, with Lowe's memory of (calls done, value) pairs that led nowhere.
//! A call of unknown outcome may take effect at any moment after it was sent, or never.
//!
//! A search that does not end within [`STEPS_MAX`] is reported as undecided, not as a fault.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Violation;
use crate::chaos::history::{Call, History, Op, Outcome, Refusal};

/// Steps of one key's search: a second or two; ordinary keys need some hundreds.
const STEPS_MAX: u64 = 3_000_000;

/// What was searched.
#[derive(Debug, Default)]
pub struct Searched {
    pub keys: usize,
    pub undecided: Vec<String>,
}

/// A value by number; `None` is an absent key.
type State = Option<u32>;

/// What a call does to one key, or says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create(u32),
    Swap(u32, u32),
    Delete(Option<u32>),
    Read(State),
    /// Something was there.
    Exists,
    /// It was not this.
    Differs(u32),
}

impl Step {
    /// The state afterwards, if the step is possible.
    fn apply(self, state: State) -> Option<State> {
        match self {
            Step::Create(value) => state.is_none().then_some(Some(value)),
            Step::Swap(old, new) => (state == Some(old)).then_some(Some(new)),
            Step::Delete(None) => state.is_some().then_some(None),
            Step::Delete(Some(old)) => (state == Some(old)).then_some(None),
            Step::Read(value) => (state == value).then_some(state),
            Step::Exists => state.is_some().then_some(state),
            Step::Differs(value) => (state != Some(value)).then_some(state),
        }
    }
}

/// A step with its time.
#[derive(Clone, Copy, Debug)]
struct Timed {
    step: Step,
    invoke: u64,
    /// `None`: the outcome is unknown, it may also never happen.
    answer: Option<u64>,
    /// Which call of the history it is.
    call: usize,
}

/// Numbers for the values of a history.
#[derive(Default)]
struct Values<'a>(HashMap<&'a str, u32>);

impl<'a> Values<'a> {
    fn number(&mut self, value: &'a str) -> u32 {
        let next = u32::try_from(self.0.len()).expect("fewer than 2³² values");
        *self.0.entry(value).or_insert(next)
    }
}

/// Searches all keys.
pub fn check(history: &History, violations: &mut Vec<Violation>) -> Searched {
    let mut searched = Searched::default();
    for (key, steps) in by_key(history) {
        searched.keys += 1;
        match search(&steps) {
            Verdict::Linearizable => {}
            Verdict::Undecided => searched.undecided.push(key.to_owned()),
            Verdict::Broken { furthest, stuck } => {
                let calls: Vec<String> = stuck.iter().map(|step| told(history, step)).collect();
                let detail = format!(
                    "{key}: no order of its {} calls explains their answers; after {furthest} \
                     of them none of these fits:\n    {}",
                    steps.len(),
                    calls.join("\n    ")
                );
                violations.push(Violation { rule: "linearizable", detail });
            }
        }
    }
    searched
}

fn told(history: &History, timed: &Timed) -> String {
    let call = &history.calls[timed.call];
    let (client, member) = (call.client, call.member);
    let (from, to) = (call.invoke_us, call.return_us);
    match &call.op {
        Op::List { .. } => {
            format!("list read {:?} (client {client}, member {member}, {from}–{to})", timed.step)
        }
        op => {
            format!("{op:?} → {:?} (client {client}, member {member}, {from}–{to})", call.outcome)
        }
    }
}

/// The steps of every key, by the time of sending.
fn by_key(history: &History) -> BTreeMap<&str, Vec<Timed>> {
    let mut values = Values::default();
    let mut keys: BTreeMap<&str, Vec<Timed>> = BTreeMap::new();
    for (index, call) in history.calls.iter().enumerate() {
        let Some(key) = call.op.key() else { continue };
        let steps = keys.entry(key).or_default();
        if let Some(step) = step_of(call, &mut values) {
            let answer = (!call.is_unknown()).then_some(call.return_us);
            steps.push(Timed { step, invoke: call.invoke_us, answer, call: index });
        }
    }
    for (index, call) in history.calls.iter().enumerate() {
        let (Op::List { prefix }, Outcome::Listed { items, .. }) = (&call.op, &call.outcome) else {
            continue;
        };
        let listed: HashMap<&str, &str> =
            items.iter().map(|item| (item.key.as_str(), item.value.as_str())).collect();
        for (key, steps) in keys.range_mut(prefix.as_str()..) {
            if !key.starts_with(prefix.as_str()) {
                break;
            }
            let state = listed.get(key).map(|value| values.number(value));
            let (invoke, answer) = (call.invoke_us, Some(call.return_us));
            steps.push(Timed { step: Step::Read(state), invoke, answer, call: index });
        }
    }
    for steps in keys.values_mut() {
        steps.sort_by_key(|step| step.invoke);
    }
    keys
}

/// What a call says about its key; `None` if nothing.
fn step_of<'a>(call: &'a Call, values: &mut Values<'a>) -> Option<Step> {
    let effect = match &call.op {
        Op::Create { value, .. } => Step::Create(values.number(value)),
        Op::Update { old, value, .. } => Step::Swap(values.number(old), values.number(value)),
        Op::Delete { base, .. } => {
            Step::Delete(base.as_ref().map(|(_, value)| values.number(value)))
        }
        Op::Get { .. } => {
            let Outcome::Found { item } = &call.outcome else {
                return (call.outcome == Outcome::Refused(Refusal::NotFound))
                    .then_some(Step::Read(None));
            };
            return Some(Step::Read(item.as_ref().map(|item| values.number(&item.value))));
        }
        Op::List { .. } => return None,
    };
    match (&call.outcome, effect) {
        (Outcome::Written { .. } | Outcome::Deleted | Outcome::Unknown { .. }, effect) => {
            Some(effect)
        }
        (Outcome::Refused(Refusal::Exists), _) => Some(Step::Exists),
        (Outcome::Refused(Refusal::NotFound), _) => Some(Step::Read(None)),
        (Outcome::Refused(Refusal::Conflict), Step::Swap(old, _) | Step::Delete(Some(old))) => {
            Some(Step::Differs(old))
        }
        _ => None,
    }
}

enum Verdict {
    Linearizable,
    Broken {
        /// The largest number of steps that could be put in an order.
        furthest: usize,
        /// Those that could have come next, and none fits.
        stuck: Vec<Timed>,
    },
    Undecided,
}

/// Which steps are done.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Box<[u64]>);

impl Done {
    fn none(steps: usize) -> Done {
        Done(vec![0; steps.div_ceil(64)].into_boxed_slice())
    }

    fn has(&self, step: usize) -> bool {
        self.0[step / 64] & (1 << (step % 64)) != 0
    }

    fn flip(&mut self, step: usize) {
        self.0[step / 64] ^= 1 << (step % 64);
    }
}

/// Looks for an order, depth first. A step may come next if no step that is not done was answered
/// before it was sent.
fn search(steps: &[Timed]) -> Verdict {
    let must = steps.iter().filter(|step| step.answer.is_some()).count();
    let mut done = Done::none(steps.len());
    let mut state: State = None;
    let mut finished = 0;
    let mut seen: HashSet<(Done, State)> = HashSet::new();
    // What was done to come here: the step and the state before it.
    let mut path: Vec<(usize, State)> = Vec::new();
    let mut first_open = 0;
    let mut next = 0;
    let (mut furthest, mut stuck) = (0, candidates(steps, &done, 0));
    for _ in 0..STEPS_MAX {
        if finished == must {
            return Verdict::Linearizable;
        }
        // Steps that change nothing go first: that never spoils anything.
        let quiet =
            if next == 0 { forward(steps, &done, state, (first_open, 0), true) } else { None };
        let found = quiet.or_else(|| forward(steps, &done, state, (first_open, next), false));
        if let Some((step, after)) = found {
            done.flip(step);
            if seen.insert((done.clone(), after)) {
                path.push((step, state));
                state = after;
                finished += usize::from(steps[step].answer.is_some());
                while first_open < steps.len() && done.has(first_open) {
                    first_open += 1;
                }
                next = 0;
                if path.len() > furthest {
                    furthest = path.len();
                    stuck = candidates(steps, &done, first_open);
                }
            } else {
                done.flip(step);
                next = step + 1;
            }
            continue;
        }
        let Some((step, before)) = path.pop() else {
            return Verdict::Broken { furthest, stuck };
        };
        done.flip(step);
        finished -= usize::from(steps[step].answer.is_some());
        first_open = first_open.min(step);
        // A step that changed nothing was as good here as anywhere later: nothing else to try.
        next = if state == before { steps.len() } else { step + 1 };
        state = before;
    }
    Verdict::Undecided
}

/// The first step from `from` on that may come next and fits the state: one that changes nothing
/// (`quiet`), or one that does.
fn forward(
    steps: &[Timed],
    done: &Done,
    state: State,
    (first_open, from): (usize, usize),
    quiet: bool,
) -> Option<(usize, State)> {
    let mut deadline = u64::MAX;
    for (index, timed) in steps.iter().enumerate().skip(first_open) {
        if done.has(index) {
            continue;
        }
        // Sorted by sending: from here on everything was sent after an answer that is not done.
        if timed.invoke > deadline {
            return None;
        }
        if index >= from
            && let Some(after) = timed.step.apply(state)
            && (after == state) == quiet
            // An unknown call that changes nothing need not be placed at all.
            && (timed.answer.is_some() || !quiet)
        {
            return Some((index, after));
        }
        deadline = deadline.min(timed.answer.unwrap_or(u64::MAX));
    }
    None
}

/// All steps that may come next, for the report.
fn candidates(steps: &[Timed], done: &Done, first_open: usize) -> Vec<Timed> {
    /// More would not be read.
    const SHOWN_MAX: usize = 12;
    let mut deadline = u64::MAX;
    let mut open = Vec::new();
    for (index, timed) in steps.iter().enumerate().skip(first_open) {
        if timed.invoke > deadline || open.len() == SHOWN_MAX {
            break;
        }
        if !done.has(index) {
            open.push(*timed);
            deadline = deadline.min(timed.answer.unwrap_or(u64::MAX));
        }
    }
    open
}
