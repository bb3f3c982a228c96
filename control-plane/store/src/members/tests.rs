//! The decisions about members, on views made by hand.

use super::*;

/// Five members: 1 leads, 2 and 3 vote, 10 and 11 learn; 3 and 11 are away.
fn view() -> View {
    let place = |id: MemberId| Place { name: format!("m{id}"), address: format!("host{id}:1") };
    let near = Duration::from_millis(20);
    View {
        leader: Some(1),
        places: [1, 2, 3, 10, 11].map(|id| (id, place(id))).into(),
        voters: [1, 2, 3].into(),
        established: [1, 2, 3].into(),
        joint: false,
        membership: None,
        settled: true,
        last_index: 500,
        matched: [(2, 500), (3, 120), (10, 450), (11, 3)].into(),
        heard: [(2, near), (3, Duration::from_secs(9)), (10, near)].into(),
    }
}

#[test]
fn a_new_member_needs_a_name_and_an_address_of_its_own() {
    assert_eq!(plan_add(&view(), "new", "new:1"), Ok(BTreeSet::new()));
    let (name, address) = ("m2".to_owned(), "host2:1".to_owned());
    let taken = Err(MembershipError::Taken { id: 2, name, address });
    assert_eq!(plan_add(&view(), "m2", "new:1"), taken);
    assert_eq!(plan_add(&view(), "new", "host2:1"), taken);
    assert_eq!(plan_add(&view(), "m11", "host10:1"), Ok([10, 11].into()), "learners are replaced");
    let mut many = view();
    for id in 20..24 {
        many.places.insert(id, Place { name: format!("m{id}"), address: format!("h{id}") });
    }
    assert_eq!(plan_add(&many, "new", "new:1"), Err(MembershipError::TooMany(9)));
    assert_eq!(plan_add(&many, "m11", "new:1"), Ok([11].into()));
}

#[test]
fn a_member_that_moved_takes_nobody_s_place() {
    let place = |name: &str, address: &str| Place { name: name.into(), address: address.into() };
    assert_eq!(plan_move(&view(), 2, &place("m2", "host2:1")), Ok(false), "nothing is new");
    assert_eq!(plan_move(&view(), 2, &place("m2", "elsewhere:1")), Ok(true));
    assert_eq!(plan_move(&view(), 2, &place("other", "host2:1")), Ok(true));
    let missing = Err(MembershipError::NoSuchMember { id: 7 });
    assert_eq!(plan_move(&view(), 7, &place("m7", "host7:1")), missing);
    let (name, address) = ("m3".to_owned(), "host3:1".to_owned());
    let taken = Err(MembershipError::Taken { id: 3, name, address });
    assert_eq!(plan_move(&view(), 2, &place("m2", "host3:1")), taken);
    assert_eq!(plan_move(&view(), 2, &place("m3", "host2:1")), taken);
}

#[test]
fn a_voter_goes_only_if_the_rest_can_decide() {
    assert_eq!(plan_remove(&view(), 1, 7), Err(MembershipError::NoSuchMember { id: 7 }));
    assert_eq!(plan_remove(&view(), 1, 11), Ok(Removal::Learner));
    assert_eq!(plan_remove(&view(), 1, 3), Ok(Removal::Voter), "the one that is away may go");
    let loses = |id| Err(MembershipError::LosesMajority { id });
    assert_eq!(plan_remove(&view(), 1, 2), loses(2), "1 and 3 are left, and 3 is away");
    assert_eq!(plan_remove(&view(), 1, 1), loses(1));
    let mut whole = view();
    whole.heard.insert(3, Duration::ZERO);
    assert_eq!(plan_remove(&whole, 1, 2), Ok(Removal::Voter));
    assert_eq!(plan_remove(&whole, 1, 1), Ok(Removal::AfterHandOver));
    let alone = View { voters: [1].into(), ..view() };
    assert_eq!(plan_remove(&alone, 1, 1), Err(MembershipError::LastVoter));
}

#[test]
fn leadership_goes_to_a_voter_that_is_there() {
    assert_eq!(plan_transfer(&view(), 1, None), Ok(2));
    assert_eq!(plan_transfer(&view(), 1, Some(2)), Ok(2));
    assert_eq!(plan_transfer(&view(), 1, Some(1)), Ok(1));
    assert_eq!(plan_transfer(&view(), 1, Some(3)), Err(MembershipError::NotTaken { id: 3 }));
    assert_eq!(plan_transfer(&view(), 1, Some(10)), Err(MembershipError::NotAVoter { id: 10 }));
    assert_eq!(plan_transfer(&view(), 1, Some(7)), Err(MembershipError::NoSuchMember { id: 7 }));
    let alone = View { voters: [1].into(), ..view() };
    assert!(plan_transfer(&alone, 1, None).is_err());
    let busy = View { last_index: 700, ..view() };
    assert_eq!(plan_transfer(&busy, 1, None), Ok(2), "what it lacks is on its way");
    let late = View { last_index: 2500, ..view() };
    let lacks = Err(MembershipError::NotCaughtUp { id: 2, behind: 2000 });
    assert_eq!(plan_transfer(&late, 1, None), lacks, "it would not take the lead in time");
    assert_eq!(plan_transfer(&late, 1, Some(2)), lacks);
    assert_eq!(plan_transfer(&late, 1, Some(1)), Ok(1));
}

#[test]
fn a_member_nobody_heard_of_lacks_everything() {
    assert_eq!([2, 10, 11, 99].map(|id| behind(&view(), id)), [0, 50, 497, 500]);
    assert!(!alive(&view(), 1, 11));
}

#[test]
fn roles_have_the_names_people_read() {
    let roles = [Role::Leader, Role::Voter, Role::Learner].map(|role| role.to_string());
    assert_eq!(roles, ["leader", "voter", "learner"]);
    assert_eq!(format!("{:<8}|", Role::Voter), "voter   |");
}
