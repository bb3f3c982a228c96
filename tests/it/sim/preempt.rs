//! A second model of preemption, written from its rules and not from the scheduler, and compared
//! with the scheduler's plan on random clusters.
//!
//! The rules: on a node, only Pods of lower priority may have to go. If it would help that all of
//! them went, they come back one by one as far as there is room beside the new Pod: first those
//! whose going breaks a budget, then the others; among these the more important first, then those
//! who have run for longer. Who finds no room is a victim. Of the nodes the one is taken where the
//! fewest budgets break; then where the most important victim matters least; then where all victims
//! together matter least; then the fewest; then where the most important ones have run the shortest.

use proptest::prelude::*;
use wherry_control_plane::scheduler::cluster::Cluster;
use wherry_control_plane::scheduler::preempt::preempt;

use super::*;

/// A Pod on a node: how much it matters, what it asks for, which app it is of.
#[derive(Clone, Debug)]
struct Tenant {
    name: String,
    priority: i64,
    cpu: i64,
    app: usize,
    /// When it began, in seconds: different for all.
    began: i64,
}

#[derive(Clone, Debug)]
struct House {
    cpu: i64,
    pods: usize,
    tenants: Vec<Tenant>,
}

#[derive(Clone, Debug)]
struct World {
    houses: Vec<House>,
    /// Disruptions that each app's budget allows; without one all are.
    budgets: Vec<Option<i64>>,
    priority: i64,
    cpu: i64,
}

impl World {
    fn has_room(&self, house: &House, stay: &[&Tenant]) -> bool {
        let used: i64 = stay.iter().map(|tenant| tenant.cpu).sum();
        used + self.cpu <= house.cpu && stay.len() < house.pods
    }

    /// Who would have to go from a house, and whether their going breaks budgets.
    fn victims<'a>(&self, house: &'a House) -> Option<Vec<(&'a Tenant, bool)>> {
        let (mut lower, mut stay): (Vec<&Tenant>, Vec<&Tenant>) =
            house.tenants.iter().partition(|tenant| tenant.priority < self.priority);
        if !self.has_room(house, &stay) {
            return None;
        }
        lower.sort_by_key(|tenant| (-tenant.priority, tenant.began));
        let mut left = self.budgets.clone();
        let mut candidates = Vec::new();
        for tenant in lower {
            let breaks = left[tenant.app].as_mut().is_some_and(|allowed| {
                *allowed -= 1;
                *allowed < 0
            });
            candidates.push((tenant, breaks));
        }
        // A stable sort: the rest of the order stands.
        candidates.sort_by_key(|(_, breaks)| !breaks);
        let mut victims = Vec::new();
        for (tenant, breaks) in candidates {
            stay.push(tenant);
            if !self.has_room(house, &stay) {
                stay.pop();
                victims.push((tenant, breaks));
            }
        }
        Some(victims).filter(|victims| !victims.is_empty())
    }

    /// The house that is chosen and who goes, by the rules.
    fn expected(&self) -> Option<(usize, BTreeSet<String>)> {
        let harm = |victims: &[(&Tenant, bool)]| {
            let broken = victims.iter().filter(|(_, breaks)| *breaks).count();
            let most = victims.iter().map(|(tenant, _)| tenant.priority).max();
            // Each victim counts, also one of priority 0.
            let all: i64 = victims.iter().map(|(tenant, _)| tenant.priority + (1 << 31)).sum();
            let longest = victims.iter().filter(|(tenant, _)| Some(tenant.priority) == most);
            let longest = longest.map(|(tenant, _)| tenant.began).min();
            (broken, most, all, victims.len(), longest.map(|began| -began))
        };
        let plans = self.houses.iter().enumerate();
        let plans = plans.filter_map(|(index, house)| Some((index, self.victims(house)?)));
        let (index, victims) = plans.min_by_key(|(index, victims)| (harm(victims), *index))?;
        Some((index, victims.into_iter().map(|(tenant, _)| tenant.name.clone()).collect()))
    }

    /// The same by the scheduler.
    fn planned(&self) -> Option<(usize, BTreeSet<String>)> {
        let mut cluster = Cluster::default();
        for (index, house) in self.houses.iter().enumerate() {
            let amounts = json!({
                "cpu": format!("{}m", house.cpu), "memory": "1Gi", "pods": house.pods.to_string(),
            });
            cluster.put_node(&typed(
                &json!({"metadata": {"name": format!("n{index}")}, "status": {
                    "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}],
                }}),
            ));
            for tenant in &house.tenants {
                let node = format!("n{index}");
                cluster.place(&need(&tenant.name, tenant), &node, false);
            }
        }
        for (app, allowed) in self.budgets.iter().enumerate() {
            let Some(allowed) = allowed else { continue };
            cluster.put_budget(&typed(&json!({
                "metadata": {"name": format!("b{app}"), "namespace": NAMESPACE},
                "spec": {"selector": {"matchLabels": {"app": format!("app{app}")}}},
                "status": {
                    "disruptionsAllowed": allowed, "currentHealthy": 0, "desiredHealthy": 0,
                    "expectedPods": 0,
                },
            })));
        }
        let newcomer = Tenant {
            name: "new".to_string(),
            priority: self.priority,
            cpu: self.cpu,
            app: self.budgets.len(),
            began: 0,
        };
        let plan = preempt(&mut cluster, &need("new", &newcomer))?;
        let index = plan.node.trim_start_matches('n').parse().expect("a number");
        Some((index, plan.victims.into_iter().map(|victim| victim.name).collect()))
    }
}

fn need(name: &str, tenant: &Tenant) -> Need {
    let began = Timestamp::from_second(1_700_000_000 + tenant.began).expect("in range");
    Need::read(&typed(&json!({
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"),
            "labels": {"app": format!("app{}", tenant.app)},
        },
        "spec": {"priority": tenant.priority, "containers": [{
            "name": "c", "resources": {"requests": {"cpu": format!("{}m", tenant.cpu)}},
        }]},
        "status": {"startTime": began},
    })))
}

fn worlds() -> impl Strategy<Value = World> {
    let tenant = (0..5_i64, 1..5_i64, 0..3_usize);
    let house = (4..16_i64, 2..7_usize, prop::collection::vec(tenant, 0..6));
    let budgets = prop::collection::vec(prop::option::of(0..3_i64), 3);
    (prop::collection::vec(house, 1..5), budgets, 0..6_i64, 1..12_i64).prop_map(
        |(houses, budgets, priority, cpu)| {
            let mut count = 0;
            let mut tenant = |(priority, cpu, app): (i64, i64, usize)| {
                count += 1;
                // The numbers that follow each other are far apart, and different for all.
                let began = (count * 37) % 101;
                Tenant { name: format!("p{count}"), priority, cpu: cpu * 100, app, began }
            };
            let house = |(cpu, pods, tenants): (i64, usize, Vec<(i64, i64, usize)>)| House {
                cpu: cpu * 100,
                pods,
                tenants: tenants.into_iter().map(&mut tenant).collect(),
            };
            let houses = houses.into_iter().map(house).collect();
            World { houses, budgets, priority, cpu: cpu * 100 }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn preemption_follows_its_rules(world in worlds()) {
        prop_assert_eq!(world.planned(), world.expected(), "{:?}", world);
    }
}
