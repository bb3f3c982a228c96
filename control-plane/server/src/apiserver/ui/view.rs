//! One live list as one person looks at it: what of the printed rows they may see and want to see,
//! sorted, and a window of it. Pure.
//!
//! A [`View`] follows a [`Printed`] list. [`View::news`] says what the person's browser does not
//! know yet: how many there are, which rows are in the window in which order, and those rows that
//! are new or different. What is outside the window is never sent.
//!
//! A view holds the rows that its person may see, in the order in which they come, and of these the
//! ones that the filter leaves, sorted. So another filter is one walk over them, or over what the
//! last one left if somebody goes on typing, and asks nobody; what no filter leaves is never sorted:
//! Home looks at the few sick ones of many Pods. A change costs two look-ups, and nothing more if it
//! is outside the window.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use wherry_resources::{Kind, keys, state::Health};

use super::super::verbs::select::Selection;
use super::printed::{Change, Missed};
use super::row::{Look, Order, Row, Wanted};

/// Rows of one window; more than any screen shows.
pub const WINDOW_MAX: usize = 500;

/// What of a kind a person may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    /// Objects in these namespaces; of the kind Namespace these alone.
    Namespaces(BTreeSet<String>),
}

impl Scope {
    pub fn takes(&self, kind: &Kind, key: &[u8]) -> bool {
        let Scope::Namespaces(names) = self else { return true };
        let Some(key) = keys::parse(key) else { return false };
        names.contains(if kind.namespaced { key.namespace } else { key.name })
    }
}

/// Which objects of a kind a list is of.
pub struct Chosen {
    pub kind: &'static Kind,
    pub scope: Scope,
    pub selection: Selection,
    /// Only what this one, kind and name, has made.
    pub owner: Option<(String, String)>,
}

impl Chosen {
    fn takes(&self, row: &Row) -> bool {
        let is_visible = match &self.scope {
            Scope::All => true,
            Scope::Namespaces(names) if self.kind.namespaced => names.contains(&row.namespace),
            Scope::Namespaces(names) => names.contains(&row.name),
        };
        is_visible
            && self.owner.as_ref().is_none_or(|owner| row.is_owned_by(owner))
            && (self.selection.is_everything() || row.is_selected(&self.selection))
    }
}

/// A list and what of it was sent.
pub struct View {
    chosen: Chosen,
    columns: Vec<String>,
    look: Look,
    wanted: Wanted,
    sort: Order,
    /// Changes of the printed list up to here are taken in; None: nothing of it is.
    seen: Option<u64>,
    /// By [`Health`].
    health: [usize; 4],
    /// The rows that the person may see, in the order of their keys.
    all: Vec<Arc<Row>>,
    /// Those of them that are wanted, sorted; None: all are, in that order.
    found: Option<Vec<Arc<Row>>>,
    is_stale: bool,
    /// What the browser holds.
    sent: HashMap<Bytes, Arc<Row>>,
    last: Value,
}

impl View {
    /// A list of which nothing is known yet.
    pub fn new(chosen: Chosen, columns: Vec<String>, look: Look) -> View {
        let (wanted, sort) = (Wanted::of(&look, &columns), Order::of(&look, &columns));
        View {
            chosen,
            columns,
            look,
            wanted,
            sort,
            seen: None,
            health: [0; 4],
            all: Vec::new(),
            found: None,
            is_stale: false,
            sent: HashMap::new(),
            last: Value::Null,
        }
    }

    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// Up to which change of the printed list it is told.
    pub fn seen(&self) -> Option<u64> {
        self.seen
    }

    /// Looks at it in another way.
    pub fn look(&mut self, look: Look) {
        let wanted = Wanted::of(&look, &self.columns);
        let sort = Order::of(&look, &self.columns);
        let shows_the_same = self.look.shows_the_same(&look);
        let goes_on = shows_the_same || wanted.narrows(&self.wanted);
        let before = std::mem::replace(&mut self.sort, sort);
        (self.wanted, self.look, self.is_stale) = (wanted, look, true);
        match &mut self.found {
            Some(found) if goes_on => {
                if !shows_the_same {
                    found.retain(|row| self.wanted.takes(row));
                }
                if sort.is_reverse_of(before) {
                    found.reverse();
                } else if sort != before {
                    sort.sort(found);
                }
            }
            _ => self.find(),
        }
    }

    /// Looks for what is wanted among all, and sorts it.
    fn find(&mut self) {
        self.found = None;
        if !self.wanted.is_everything() || self.sort != Order::BY_KEY {
            let found = self.all.iter().filter(|row| self.wanted.takes(row));
            let mut found: Vec<Arc<Row>> = found.cloned().collect();
            self.sort.sort(&mut found);
            self.found = Some(found);
        }
    }

    /// The keys in the window, whose printed times go by.
    pub fn window(&self) -> Vec<Bytes> {
        self.slice().iter().map(|row| row.key.clone()).collect()
    }

    /// Takes in what it has missed, after which it knows the list up to `now`.
    pub fn take(&mut self, missed: Missed, now: u64) {
        match missed {
            Missed::Changes(changes) => changes.iter().for_each(|change| self.change(change)),
            Missed::All(rows) => self.begin(rows),
        }
        self.seen = Some(now);
    }

    /// All rows, in the order of their keys.
    fn begin(&mut self, mut rows: Vec<Arc<Row>>) {
        (self.health, self.is_stale) = ([0; 4], true);
        rows.retain(|row| self.chosen.takes(row));
        for health in rows.iter().filter_map(|row| row.health()) {
            self.health[health as usize] += 1;
        }
        self.all = rows;
        self.find();
    }

    fn change(&mut self, Change { before, now }: &Change) {
        let before = before.as_ref().filter(|row| self.chosen.takes(row));
        let now = now.as_ref().filter(|row| self.chosen.takes(row));
        let health = |row: Option<&Arc<Row>>| row.and_then(|row| row.health());
        let (was, is) = (health(before), health(now));
        if was != is || before.is_some() != now.is_some() {
            self.is_stale = true;
            if let Some(was) = was {
                self.health[was as usize] -= 1;
            }
            if let Some(is) = is {
                self.health[is as usize] += 1;
            }
        }
        let shown = self.shown().len();
        let mut touched = exchange(&mut self.all, Order::BY_KEY, before, now);
        if let Some(found) = &mut self.found {
            let wanted = |row: &&Arc<Row>| self.wanted.takes(row);
            touched = exchange(found, self.sort, before.filter(wanted), now.filter(wanted));
        }
        let end = self.look.from.saturating_add(self.look.count);
        // How many are shown is told wherever the change was.
        self.is_stale |= self.shown().len() != shown
            || match touched {
                Touched::Nothing => false,
                Touched::One(at) => (self.look.from..end).contains(&at),
                Touched::From(at) => at < end,
            };
    }

    /// What the browser does not know yet; `None` if it knows everything.
    pub fn news(&mut self) -> Option<Value> {
        if !self.is_stale || self.seen.is_none() {
            return None;
        }
        self.is_stale = false;
        let window = self.slice();
        let order: Vec<&str> = window.iter().map(|row| row.uid.as_str()).collect();
        let all = [Health::Bad, Health::Warn, Health::Good, Health::Idle];
        let counts = all.into_iter().map(|it| (it.word(), self.health[it as usize]));
        let health: BTreeMap<&str, usize> = counts.filter(|(_, count)| *count > 0).collect();
        let mut head = json!({
            "total": self.all.len(), "shown": self.shown().len(), "from": self.look.from,
            "health": health, "order": order,
        });
        let is_known =
            |row: &Arc<Row>| self.sent.get(&row.key).is_some_and(|sent| Arc::ptr_eq(sent, row));
        let news = window.iter().filter(|row| !is_known(row));
        let news: Vec<Value> = news.map(|row| row.shown()).collect();
        let sent = window.iter().map(|row| (row.key.clone(), row.clone())).collect();
        self.sent = sent;
        if news.is_empty() && head == self.last {
            return None;
        }
        self.last = head.clone();
        head["rows"] = news.into();
        Some(head)
    }

    fn shown(&self) -> &[Arc<Row>] {
        self.found.as_ref().unwrap_or(&self.all)
    }

    fn slice(&self) -> &[Arc<Row>] {
        let rows = self.shown();
        let from = self.look.from.min(rows.len());
        let to = from.saturating_add(self.look.count.min(WINDOW_MAX)).min(rows.len());
        &rows[from..to]
    }
}

/// Where sorted rows have become others.
enum Touched {
    Nothing,
    /// In one place; all others are where they were.
    One(usize),
    /// From there on they may be in other places.
    From(usize),
}

/// Takes a row out of sorted rows and puts another one in.
fn exchange(
    rows: &mut Vec<Arc<Row>>,
    sort: Order,
    before: Option<&Arc<Row>>,
    now: Option<&Arc<Row>>,
) -> Touched {
    let place = |rows: &[Arc<Row>], row: &Row| rows.binary_search_by(|one| sort.compare(one, row));
    if let (Some(before), Some(now)) = (before, now)
        && sort.compare(before, now).is_eq()
        && let Ok(at) = place(rows, before)
    {
        rows[at] = now.clone();
        return Touched::One(at);
    }
    let mut first = usize::MAX;
    if let Some(at) = before.and_then(|row| place(rows, row).ok()) {
        rows.remove(at);
        first = at;
    }
    if let Some(row) = now
        && let Err(at) = place(rows, row)
    {
        rows.insert(at, row.clone());
        first = first.min(at);
    }
    if first == usize::MAX { Touched::Nothing } else { Touched::From(first) }
}

#[cfg(test)]
mod tests {
    use super::super::printed::Printed;
    use super::*;
    use expect_test::expect;
    use jiff::Timestamp;
    use wherry_resources::Object;

    fn pods() -> &'static Kind {
        wherry_resources::kind("", "v1", "pods").expect("a built-in kind")
    }

    fn pod(name: &str, revision: u64, node: &str, phase: &str) -> (Bytes, Object) {
        let object = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "n", "uid": format!("u-{name}"),
                "resourceVersion": revision.to_string(), "labels": {"node": node}},
            "spec": {"nodeName": node, "containers": [{"name": "c"}]},
            "status": {"phase": phase},
        });
        (Bytes::from(name.to_owned()), object)
    }

    fn put(list: &mut Printed, (key, object): (Bytes, Object)) {
        list.put(key, &object, Timestamp::UNIX_EPOCH);
    }

    fn view(scope: Scope, labels: &str, look: Look) -> View {
        let selection = Selection::new(pods(), labels, "").expect("a selector");
        let chosen = Chosen { kind: pods(), scope, selection, owner: None };
        View::new(chosen, super::super::row::columns(pods()), look)
    }

    fn told(view: &mut View, list: &Printed) -> String {
        let (missed, now) = list.since(view.seen());
        view.take(missed, now);
        let Some(news) = view.news() else { return "nothing\n".to_owned() };
        let names = |rows: &Value, of: fn(&Value) -> &str| {
            let rows = rows.as_array().expect("a list").iter();
            rows.map(of).collect::<Vec<_>>().join(" ")
        };
        let order = names(&news["order"], |uid| uid.as_str().unwrap_or("?"));
        let rows = names(&news["rows"], |row| row["name"].as_str().unwrap_or("?"));
        let (shown, total) = (&news["shown"], &news["total"]);
        format!("{shown} of {total} {} [{order}] new: {rows}\n", news["health"])
    }

    #[test]
    fn only_what_is_in_the_window_and_new_is_told() {
        let look = Look { count: 2, ..Look::default() };
        let mut list = Printed::new(pods(), None);
        let mut view = view(Scope::All, "", look.clone());
        let mut out = told(&mut view, &list);
        for (at, name) in ["pod-10", "pod-9", "pod-2"].into_iter().enumerate() {
            put(&mut list, pod(name, at as u64 + 1, "node-a", "Running"));
        }
        out += &told(&mut view, &list);
        out += &told(&mut view, &list);
        view.look(Look { sort: "Name".to_owned(), ..look.clone() });
        out += &told(&mut view, &list);
        put(&mut list, pod("pod-9", 7, "node-b", "Failed"));
        out += &told(&mut view, &list);
        put(&mut list, pod("pod-10", 8, "node-b", "Running"));
        out += &told(&mut view, &list);
        list.remove(b"pod-2");
        out += &told(&mut view, &list);
        list.remove(b"pod-2");
        out += &told(&mut view, &list);
        expect![[r#"
            0 of 0 {} [] new: 
            3 of 3 {"warn":3} [u-pod-10 u-pod-2] new: pod-10 pod-2
            nothing
            3 of 3 {"warn":3} [u-pod-2 u-pod-9] new: pod-9
            3 of 3 {"bad":1,"warn":2} [u-pod-2 u-pod-9] new: pod-9
            nothing
            2 of 2 {"bad":1,"warn":1} [u-pod-9 u-pod-10] new: pod-10
            nothing
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn text_health_and_sort() {
        let mut list = Printed::new(pods(), None);
        let mut view = view(Scope::All, "", Look { count: 9, ..Look::default() });
        put(&mut list, pod("web-1", 1, "east-1", "Running"));
        put(&mut list, pod("web-2", 2, "west-1", "Failed"));
        put(&mut list, pod("east-db", 3, "west-1", "Succeeded"));
        let mut out = String::new();
        let look = |text: &str, health: &str, sort: &str, descending| Look {
            text: text.to_owned(),
            health: health.split(' ').filter(|one| !one.is_empty()).map(str::to_owned).collect(),
            sort: sort.to_owned(),
            descending,
            from: 0,
            count: 9,
        };
        for one in [
            look("east", "", "", false),
            look("node:east", "", "", false),
            look("WEB west", "", "", false),
            look("", "bad warn", "", false),
            look("", "", "State", false),
            look("", "", "Node", true),
            look("nothing like it", "", "", false),
        ] {
            view.look(one);
            out += &told(&mut view, &list);
        }
        expect![[r#"
            2 of 3 {"bad":1,"idle":1,"warn":1} [u-east-db u-web-1] new: east-db web-1
            1 of 3 {"bad":1,"idle":1,"warn":1} [u-web-1] new: 
            1 of 3 {"bad":1,"idle":1,"warn":1} [u-web-2] new: web-2
            2 of 3 {"bad":1,"idle":1,"warn":1} [u-web-1 u-web-2] new: web-1
            3 of 3 {"bad":1,"idle":1,"warn":1} [u-web-2 u-web-1 u-east-db] new: east-db
            3 of 3 {"bad":1,"idle":1,"warn":1} [u-web-2 u-east-db u-web-1] new: 
            0 of 3 {"bad":1,"idle":1,"warn":1} [] new: 
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn a_list_that_follows_is_the_list_that_is_begun() {
        let mut list = Printed::new(pods(), None);
        let look = |sort: &str, descending, text: &str| Look {
            text: text.to_owned(),
            sort: sort.to_owned(),
            descending,
            count: 99,
            ..Look::default()
        };
        let looks = [
            look("", false, ""),
            look("State", false, ""),
            look("Status", true, "a"),
            look("Node", true, ""),
            look("Age", false, "node:b"),
        ];
        let begin = |look: &Look| view(Scope::All, "node!=c", look.clone());
        let mut views: Vec<View> = looks.iter().map(begin).collect();
        let phases = ["Running", "Failed", "Succeeded", "Pending"];
        for step in 0..400_u64 {
            let name = format!("pod-{}", step * 7919 % 61);
            match step % 5 {
                4 => list.remove(name.as_bytes()),
                _ => {
                    let node = ["a", "b", "c"][(step * 31 % 3) as usize];
                    let phase = phases[(step * 17 % 4) as usize];
                    put(&mut list, pod(&name, step + 1, node, phase));
                }
            }
            if step % 50 != 49 {
                continue;
            }
            for (view, look) in views.iter_mut().zip(&looks) {
                let mut anew = begin(look);
                let new = told(&mut anew, &list);
                let followed = told(view, &list);
                let head = |told: &str| told.split(" new:").next().map(str::to_owned);
                assert_eq!(head(&followed), head(&new), "{look:?} after {step}");
            }
        }
    }

    #[test]
    fn a_look_shows_the_same_from_wherever_one_comes() {
        let mut list = Printed::new(pods(), None);
        for (at, phase) in ["Running", "Failed", "Succeeded", "Pending"].iter().enumerate() {
            for name in ["web", "db", "web-db"] {
                let node = ["east", "west"][at % 2];
                put(&mut list, pod(&format!("{name}-{at}"), at as u64 + 1, node, phase));
            }
        }
        let mut looks = Vec::new();
        for text in ["", "web", "web-d", "node:east"] {
            for (sort, descending) in [("", false), ("", true), ("State", false), ("Node", true)] {
                let (text, sort) = (text.to_owned(), sort.to_owned());
                looks.push(Look { text, sort, descending, count: 99, ..Look::default() });
            }
        }
        looks.push(Look { health: vec!["bad".to_owned()], count: 99, ..Look::default() });
        let names = |view: &View| {
            let names = view.slice().iter().map(|row| row.name.clone());
            names.collect::<Vec<String>>()
        };
        let begin = |look: &Look| {
            let mut view = view(Scope::All, "", look.clone());
            let (missed, now) = list.since(None);
            view.take(missed, now);
            view
        };
        for from in &looks {
            for to in &looks {
                let mut view = begin(from);
                view.look(to.clone());
                assert_eq!(names(&view), names(&begin(to)), "{from:?}, then {to:?}");
            }
        }
        let sick = begin(looks.last().expect("there are looks"));
        assert_eq!((names(&sick).len(), sick.all.len()), (3, 12));
    }

    #[test]
    fn a_person_is_told_of_what_they_may_see() {
        let mut list = Printed::new(pods(), None);
        let names = BTreeSet::from(["m".to_owned()]);
        let look = Look { count: 9, ..Look::default() };
        let mut theirs = view(Scope::Namespaces(names), "", look.clone());
        let mut of_east = view(Scope::All, "node=east", look);
        put(&mut list, pod("a", 1, "east", "Running"));
        put(&mut list, pod("b", 2, "west", "Running"));
        let mut out = told(&mut theirs, &list) + &told(&mut of_east, &list);
        put(&mut list, pod("b", 3, "east", "Failed"));
        put(&mut list, pod("a", 4, "west", "Running"));
        out += &(told(&mut theirs, &list) + &told(&mut of_east, &list));
        expect![[r#"
            0 of 0 {} [] new: 
            1 of 1 {"warn":1} [u-a] new: a
            nothing
            1 of 1 {"bad":1} [u-b] new: b
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn a_list_may_be_of_what_one_object_has_made() {
        let mut list = Printed::new(pods(), None);
        let mut view = view(Scope::All, "", Look { count: 9, ..Look::default() });
        view.chosen.owner = Some(("Job".to_owned(), "nightly".to_owned()));
        let owned = [("a", "Job", "nightly"), ("b", "Job", "hourly"), ("c", "Set", "nightly")];
        for (name, kind, owner) in owned {
            let (key, mut object) = pod(name, 1, "east", "Running");
            object["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": kind,
                "name": owner, "uid": "u", "controller": true}]);
            put(&mut list, (key, object));
        }
        put(&mut list, pod("d", 1, "east", "Running"));
        assert_eq!(told(&mut view, &list), "1 of 1 {\"warn\":1} [u-a] new: a\n");
    }
}
