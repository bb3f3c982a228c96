//! Per-key linearizability by values alone: is there an order of a key's calls, each at one moment
//! between its sending and its answer, in which every answer is right? Linearizability is local, so
//! that every key may be searched for itself, and a list counts as a read of each key.
//!
//! The search is Wing and Gong's, with Lowe's memory of (calls done, value) pairs that led nowhere.
//! A call of unknown outcome may take effect at any moment after it was sent, or never.
//!
//! A key's own calls are over after some seconds, but it stands in every whole list to the end: of
//! those reads only as many are searched as say something (`push_read`).
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
    // From when on a key's own calls are over.
    let mut over: HashMap<&str, u64> = HashMap::new();
    for (index, call) in history.calls.iter().enumerate() {
        let Some(key) = call.op.key() else { continue };
        let until = over.entry(key).or_default();
        *until = call.return_us.max(*until);
        let steps = keys.entry(key).or_default();
        if let Some(step) = step_of(call, &mut values) {
            let answer = (!call.is_unknown()).then_some(call.return_us);
            steps.push(Timed { step, invoke: call.invoke_us, answer, call: index });
        }
    }
    let mut calls: Vec<(usize, &Call)> = history.calls.iter().enumerate().collect();
    calls.sort_by_key(|(_, call)| call.invoke_us);
    for (index, call) in calls {
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
            let read = Timed { step: Step::Read(state), invoke, answer, call: index };
            push_read(steps, read, over.get(*key).copied().unwrap_or(0));
        }
    }
    for steps in keys.values_mut() {
        steps.sort_by_key(|step| step.invoke);
    }
    keys
}

/// Adds a list's read of a key, which comes in the order of sending; `over` is when the key's own
/// calls had ended. After that its state can change only by calls of unknown outcome, and never
/// back to a value that it had, since no two calls set the same. So of three equal reads, each sent
/// behind the answer of the one before, the one in the middle says nothing: between the others the
/// state stays, or a value comes and goes that no read has to see.
fn push_read(steps: &mut Vec<Timed>, read: Timed, over: u64) {
    let says_nothing = match steps.as_slice() {
        [.., first, middle] => {
            let equal = first.step == read.step && middle.step == read.step;
            let in_turn = first.answer <= Some(middle.invoke) && middle.answer <= Some(read.invoke);
            first.invoke > over && equal && in_turn
        }
        _ => false,
    };
    if says_nothing {
        steps.pop();
    }
    steps.push(read);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::history::Item;

    fn call(invoke_us: u64, op: Op, outcome: Outcome) -> Call {
        Call { client: 0, member: 0, invoke_us, return_us: invoke_us + 5, op, outcome }
    }

    fn list(at_us: u64, value: Option<&str>) -> Call {
        let item = |value: &str| Item { key: "k".to_owned(), revision: 1, value: value.to_owned() };
        let items = value.map(item).into_iter().collect();
        call(at_us, Op::List { prefix: String::new() }, Outcome::Listed { revision: 1, items })
    }

    /// A key is created, and then stands in a thousand lists; one of them may miss it.
    fn listed(odd: Option<u64>) -> History {
        let create = Op::Create { key: "k".to_owned(), value: "a".to_owned() };
        let lists = (1..=1000)
            .map(|number| list(number * 10, if Some(number) == odd { None } else { Some("a") }));
        let created = call(0, create, Outcome::Written { revision: 1 });
        History { calls: std::iter::once(created).chain(lists).collect(), ..History::default() }
    }

    #[test]
    fn equal_reads_of_an_old_key_are_few_and_none_is_missed() {
        assert_eq!(by_key(&listed(None))["k"].len(), 3, "the first list and the last are left");
        let mut violations = Vec::new();
        check(&listed(None), &mut violations);
        assert!(violations.is_empty(), "{violations:?}");
        for odd in [1, 2, 500, 999, 1000] {
            violations.clear();
            check(&listed(Some(odd)), &mut violations);
            assert_eq!(violations.len(), 1, "list {odd} does not have it");
        }
    }
}
