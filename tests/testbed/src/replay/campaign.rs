//! One recording, many crash states of it, each judged, all counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::dice::Dice;
use super::judge::{self, Checker, Lane};
use super::moments::{self, Class, Moments};
use super::platter::{Fates, Platter};
use super::record::{POOL_BYTES, Plan, Promises, Recording, record};
use super::trace::Trace;
use crate::Result;
use crate::server::Setup;

/// What was judged.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// States of each class.
    pub classes: BTreeMap<Class, u64>,
    /// States after a second crash, inside the recovery from the first.
    pub twice: u64,
    /// Writes that were not certainly there, over all states.
    pub fates: Fates,
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for class in Class::ALL {
            write!(f, "{} {}, ", class.name(), self.classes.get(&class).unwrap_or(&0))?;
        }
        let Fates { pending, lost, torn } = self.fates;
        let twice = self.twice;
        write!(f, "crashed twice {twice}; unflushed writes {pending}, lost {lost}, torn {torn}")
    }
}

/// A crash state that is about to be judged.
struct State {
    class: Class,
    cut: usize,
    twice: bool,
    seed: u64,
}

/// Recorded, and ready to be cut.
pub struct Campaign {
    pub(super) setup: Setup,
    pub(super) recording: Recording,
    moments: Moments,
    pub(super) seed: u64,
}

const TRIES: usize = 5;

/// The medium, and the next state to be made of it.
type Source = Mutex<(Platter, usize)>;

impl Campaign {
    /// Records.
    ///
    /// # Errors
    /// If that fails, or nothing delicate has happened.
    pub fn record(setup: Setup, plan: &Plan) -> Result<Campaign> {
        let recording = record(setup.clone(), plan)?;
        let mut moments = moments::find(&recording.trace, &recording.base)?;
        let from = recording.trace.cut_at(recording.from);
        for (class, ranges) in &mut moments {
            for range in ranges.iter_mut() {
                range.start = range.start.max(from);
            }
            ranges.retain(|range| !range.is_empty());
            if ranges.is_empty() {
                return Err(format!("nothing was recorded of {}", class.name()).into());
            }
        }
        if moments.len() != Class::ALL.len() {
            return Err("not every class of moments was recorded".into());
        }
        Ok(Campaign { setup, recording, moments, seed: plan.seed })
    }

    /// How often each class came up while recording.
    #[must_use]
    pub fn recorded(&self) -> String {
        let classes = Class::ALL.iter().filter(|class| **class != Class::Random);
        let count = |class: &Class| format!("{} {}", class.name(), self.moments[class].len());
        let counts: Vec<String> = classes.map(count).collect();
        let steps = self.recording.trace.steps();
        let bytes = self.recording.trace.end(steps) >> 20;
        let jobs = self.recording.promises(u64::MAX).jobs;
        let (mapped, pool) = (self.recording.mapped >> 20, POOL_BYTES >> 20);
        format!(
            "{steps} steps, {bytes} MiB, {mapped} of {pool} MiB mapped, {}; promises {jobs:?}",
            counts.join(", ")
        )
    }

    /// Draws cuts, as many of each class, ascending.
    fn draw(&self, states: usize) -> Vec<State> {
        let mut dice = Dice::new(self.seed);
        let mut drawn: Vec<State> = (0..states)
            .map(|at| {
                let class = Class::ALL[at % Class::ALL.len()];
                // The more a crash can take, the better the cut.
                let tries = if class == Class::Random { 1 } else { TRIES };
                let cuts = (0..tries).map(|_| self.draw_cut(class, &mut dice));
                let cut = cuts.max_by_key(|cut| self.recording.trace.pending(*cut)).unwrap_or(0);
                State { class, cut, twice: at % 6 == 4, seed: dice.below(u64::MAX) }
            })
            .collect();
        drawn.sort_by_key(|state| state.cut);
        drawn
    }

    fn draw_cut(&self, class: Class, dice: &mut Dice) -> usize {
        let ranges = &self.moments[&class];
        let range = &ranges[dice.below(ranges.len() as u64) as usize];
        range.start + dice.below(range.len() as u64) as usize
    }

    /// Judges this many crash states, on this many lanes.
    ///
    /// # Errors
    /// The first state in which a promise is broken; it is kept in the folder `keep`.
    pub fn run(&self, states: usize, lanes: usize, keep: &Path) -> Result<Coverage> {
        let (mut lanes, checker) = judge::open(&self.setup, lanes)?;
        let drawn = self.draw(states);
        let source = Mutex::new((self.platter(), 0));
        let coverage = Mutex::new(Coverage::default());
        let work = |lane: &mut Lane| -> Result<()> {
            while let Some((state, fates)) = self.next(&drawn, &source, lane)? {
                let judged = self.judge(lane, &checker, state);
                judged.map_err(|error| self.keep(keep, state, lane, &*error))?;
                let mut coverage = coverage.lock().unwrap_or_else(PoisonError::into_inner);
                coverage.add(state, fates);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> =
                lanes.iter_mut().map(|lane| scope.spawn(move || work(lane))).collect();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err("a thread of the replayer panicked".into()))
            });
            ended.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        })?;
        let coverage = coverage.into_inner().unwrap_or_else(PoisonError::into_inner);
        match Class::ALL.iter().find(|class| !coverage.classes.contains_key(class)) {
            Some(class) if states >= Class::ALL.len() => {
                Err(format!("no state of class {}: {coverage}", class.name()).into())
            }
            _ => Ok(coverage),
        }
    }

    /// The medium before the first step.
    pub(super) fn platter(&self) -> Platter {
        Platter::new(self.recording.base.clone(), self.seed.is_multiple_of(2))
    }

    /// Makes the next state that nobody has taken yet.
    fn next<'a>(
        &self,
        drawn: &'a [State],
        source: &Source,
        lane: &Lane,
    ) -> Result<Option<(&'a State, Fates)>> {
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        let (platter, at) = &mut *source;
        let Some(state) = drawn.get(*at) else { return Ok(None) };
        *at += 1;
        let trace = &self.recording.trace;
        platter.advance(trace, state.cut, trace.durable(state.cut))?;
        let (patches, fates) = platter.draw(trace, &mut Dice::new(state.seed))?;
        platter.save(&patches, &lane.pool())?;
        Ok(Some((state, fates)))
    }

    fn judge(&self, lane: &mut Lane, checker: &Checker, state: &State) -> Result<()> {
        if state.twice {
            crash_again(lane, state)?;
        }
        // As it is judged, to be kept if it is judged wrong.
        std::fs::copy(lane.pool(), copy_of(lane))?;
        lane.judge(checker, &self.recording.file_system, &self.promises(state.cut))
    }

    pub(super) fn promises(&self, cut: usize) -> Promises {
        self.recording.promises(self.recording.trace.end(cut))
    }

    /// Keeps the state, and says where and why.
    fn keep(
        &self,
        keep: &Path,
        state: &State,
        lane: &Lane,
        error: &(dyn std::error::Error + Send + Sync),
    ) -> crate::Error {
        let (file_system, class) = (&self.recording.file_system, state.class.name());
        let name = format!("{file_system}-{}-{class}-{}", self.seed, state.cut);
        let path = keep.join(&name);
        let owed = self.promises(state.cut).jobs;
        let what = format!("{name}, crashed twice: {}, owed: {owed:?}\n{error}\n", state.twice);
        let kept = std::fs::create_dir_all(keep).and_then(|()| {
            std::fs::copy(copy_of(lane), &path)?;
            std::fs::write(path.with_extension("txt"), &what)
        });
        match kept {
            Ok(()) => format!("{what}the state is kept in {}", path.display()).into(),
            Err(failed) => format!("{what}the state could not be kept: {failed}").into(),
        }
    }
}

fn copy_of(lane: &Lane) -> PathBuf {
    lane.pool().with_extension("state")
}

/// Lets the recovery run, and leaves what a crash inside it may leave.
fn crash_again(lane: &mut Lane, state: &State) -> Result<()> {
    let mut platter = Platter::new(std::fs::read(lane.pool())?, true);
    let log = lane.pool().with_extension("log");
    if log.exists() {
        std::fs::remove_file(&log)?;
    }
    lane.recover_logged(&log).map_err(|error| format!("the first recovery: {error}"))?;
    let trace = Trace::read(&log, &[])?;
    let mut dice = Dice::new(state.seed ^ 1);
    let cut = dice.below(trace.steps() as u64 + 1) as usize;
    platter.advance(&trace, cut, trace.durable(cut))?;
    let (patches, _) = platter.draw(&trace, &mut dice)?;
    platter.save(&patches, &lane.pool())
}

impl Coverage {
    fn add(&mut self, state: &State, fates: Fates) {
        *self.classes.entry(state.class).or_default() += 1;
        self.twice += u64::from(state.twice);
        self.fates.pending += fates.pending;
        self.fates.lost += fates.lost;
        self.fates.torn += fates.torn;
    }
}
