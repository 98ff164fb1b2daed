//! A small deterministic generator: the same seed gives the same run on every machine.

/// A stream of numbers from a seed (xoshiro256**, seeded by splitmix64).
#[derive(Debug, Clone)]
pub struct Random {
    state: [u64; 4],
}

/// One step of splitmix64: a good hash of a number.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let mut value = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Random {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        let first = mix(seed);
        let second = mix(first);
        let third = mix(second);
        Random { state: [first, second, third, mix(third)] }
    }

    /// A stream of its own, so that one part's draws do not shift another's.
    pub fn fork(&mut self) -> Random {
        Random::new(self.number())
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from `low` through `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `share` of 1,000 cases.
    pub fn permille(&mut self, share: u32) -> bool {
        self.below(1000) < u64::from(share)
    }

    /// True in one of `cases` cases.
    pub fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }

    /// An index below `length`, small ones far more often: the hot part of a skewed load.
    pub fn skewed(&mut self, length: u64) -> u64 {
        let narrowed = self.below(length) + 1;
        let narrowed = self.below(narrowed) + 1;
        self.below(narrowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_its_stream_and_bounds_hold() {
        let (mut one, mut two) = (Random::new(7), Random::new(7));
        let mut seen = [false; 10];
        for _ in 0..1000 {
            let value = one.below(10);
            assert_eq!(value, two.below(10));
            seen[value as usize] = true;
        }
        assert_eq!(seen, [true; 10]);
        assert_eq!(one.below(0), 0);
        assert_eq!(one.between(5, 5), 5);
        assert_ne!(Random::new(1).number(), Random::new(2).number());
    }
}
