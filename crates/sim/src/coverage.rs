//! What the runs have reached, counted: a check that never happens must not look like one that
//! passes.

use std::collections::BTreeMap;

/// Counts by name.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Adds to a count.
    pub fn add(&mut self, name: &'static str, count: u64) {
        *self.counts.entry(name).or_default() += count;
    }

    /// Adds one to a count.
    pub fn hit(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Adds all counts of another.
    pub fn merge(&mut self, other: &Coverage) {
        for (name, count) in &other.counts {
            self.add(name, *count);
        }
    }

    /// A count.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Of these names, those never counted.
    #[must_use]
    pub fn missing(&self, names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|name| self.count(name) == 0).collect()
    }

    /// All counts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(&name, &count)| (name, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_named() {
        let mut coverage = Coverage::default();
        coverage.add("compactions", 0);
        coverage.hit("checkpoints");
        let mut sum = Coverage::default();
        sum.merge(&coverage);
        sum.merge(&coverage);
        assert_eq!(sum.count("checkpoints"), 2);
        assert_eq!(sum.missing(&["checkpoints", "compactions", "x"]), ["compactions", "x"]);
    }
}
