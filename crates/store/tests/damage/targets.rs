//! Damage to each kind of structure in turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bowline_store::{CheckVerdict, Place, PlaceKind};

use crate::world::{BLOCK, Image, Outcome, Random, SLOT_BYTES, check_bytes, image, judge};

/// Kinds, those of batches in the log taken together.
fn word(kind: PlaceKind) -> &'static str {
    match kind {
        PlaceKind::Header => "header",
        PlaceKind::Superblock => "superblock",
        PlaceKind::Blob => "blob",
        PlaceKind::SegmentHeader => "segment header",
        PlaceKind::LogHeader => "log header",
        PlaceKind::LogBatch(_) => "log batch",
        PlaceKind::LogData => "log data",
        PlaceKind::BatchHead => "batch head",
        PlaceKind::ImageHead => "image head",
        PlaceKind::Page(0) => "leaf",
        PlaceKind::Page(1) => "page 1",
        PlaceKind::Page(_) => "page 2",
        PlaceKind::Data => "data",
    }
}

fn places(image: &Image) -> Vec<Place> {
    let report = check_bytes(&Rc::new(RefCell::new(image.bytes.clone())), &[], true);
    assert_eq!(report.verdict, CheckVerdict::Dirty, "{:#?}", report.findings);
    assert!(report.batches_replayed > 80, "{}", report.batches_replayed);
    let is_log = |place: &Place| place.kind == PlaceKind::LogHeader;
    let log: BTreeSet<u64> = report.places.iter().filter(|p| is_log(p)).map(|p| p.at).collect();
    let mut places = report.places;
    places.retain(|place| is_log(place) || !log.contains(&place.at));
    places
}

#[test]
fn the_pool_is_whole_and_rich() {
    let image = image();
    let outcome = judge(image, image.bytes.clone(), 1);
    assert!(outcome.is_healthy && outcome.errors == 0);
    let kinds: BTreeSet<&str> = places(image).iter().map(|place| word(place.kind)).collect();
    assert_eq!(kinds.len(), 13, "{kinds:?}");
}

/// Damages single places and counts the outcomes by kind.
fn damage_each(
    per_kind: usize,
    damage: impl Fn(&mut [u8], &mut Random),
) -> BTreeMap<&'static str, Vec<Outcome>> {
    let image = image();
    let mut random = Random::new(11);
    let mut by_kind: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
    for place in places(image) {
        by_kind.entry(word(place.kind)).or_default().push(place);
    }
    let mut outcomes: BTreeMap<&str, Vec<Outcome>> = BTreeMap::new();
    for (kind, mut places) in by_kind {
        while places.len() > per_kind {
            places.swap_remove(random.below(places.len() as u64) as usize);
        }
        for place in places {
            let mut bytes = image.bytes.clone();
            let (from, to) = (place.at as usize, (place.at + place.bytes) as usize);
            damage(&mut bytes[from..to], &mut random);
            outcomes.entry(kind).or_default().push(judge(image, bytes, 7));
        }
    }
    outcomes
}

fn check_outcomes(outcomes: &BTreeMap<&'static str, Vec<Outcome>>) {
    for (kind, outcomes) in outcomes {
        for outcome in outcomes {
            use CheckVerdict::{Damaged, Dirty, Repairable};
            let wanted: &[CheckVerdict] = match *kind {
                "header" | "superblock" | "blob" | "segment header" | "image head"
                | "batch head" => &[Repairable, Dirty],
                "leaf" | "page 1" | "page 2" => &[Damaged],
                // Nothing follows the last batch of all: it is empty.
                "log batch" => &[Damaged, Dirty],
                "log header" => &[Damaged, Repairable],
                // A block of the log may be dead by now.
                _ => &[Damaged, Dirty],
            };
            assert!(wanted.contains(&outcome.verdict), "{kind}: {outcome:?}");
        }
    }
    let damaged = |kind: &str| {
        outcomes[kind].iter().filter(|outcome| outcome.verdict == CheckVerdict::Damaged).count()
    };
    assert!(damaged("log batch") + 1 >= outcomes["log batch"].len().min(30));
    assert!(damaged("data") > 0 && outcomes["leaf"].iter().any(|outcome| outcome.errors > 0));
}

#[test]
fn a_flipped_bit_in_every_kind_of_structure() {
    check_outcomes(&damage_each(40, |bytes, random| {
        // The first bytes: what follows may be padding that no checksum covers.
        let at = random.below(64.min(bytes.len() as u64)) as usize;
        bytes[at] ^= 1 << random.below(8);
    }));
}

#[test]
fn zeros_in_place_of_every_kind_of_structure() {
    check_outcomes(&damage_each(25, |bytes, _| bytes.fill(0)));
}

#[test]
fn garbage_in_place_of_every_kind_of_structure() {
    check_outcomes(&damage_each(25, |bytes, random| {
        bytes.fill_with(|| random.next() as u8);
    }));
}

/// The header and the first batch of the last segment are lost: what follows in it proves them.
#[test]
fn the_beginning_of_the_last_segment_is_lost() {
    let image = image();
    let batches = places(image).into_iter().filter_map(|place| match place.kind {
        PlaceKind::LogBatch(number) => Some((number, place.at)),
        _ => None,
    });
    let slot_of = |at: u64| at - (at - (1 << 20)) % SLOT_BYTES;
    let batches: BTreeMap<u64, u64> = batches.collect();
    let last = batches.values().next_back().map(|at| slot_of(*at)).unwrap();
    let in_last = batches.values().filter(|at| slot_of(**at) == last).count();
    assert!(in_last > 3, "only {in_last} batches in the last segment");
    let mut bytes = image.bytes.clone();
    bytes[last as usize..last as usize + 2 * BLOCK].fill(0);
    let outcome = judge(image, bytes, 3);
    assert_eq!(outcome.verdict, CheckVerdict::Damaged);
    assert!(outcome.is_open && !outcome.is_healthy);
}
