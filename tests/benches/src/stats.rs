//! Medians, ranges, and how they are written.

/// Values of one cell, one of each round.
#[derive(Debug, Clone, Default)]
pub struct Series {
    values: Vec<f64>,
}

impl Series {
    /// Adds the value of a round.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The middle one, or the mean of the two in the middle; `None` without values.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        match sorted.len() % 2 {
            1 => Some(upper),
            _ => Some((sorted[middle - 1] + upper) / 2.0),
        }
    }

    /// Median of this divided by the median of the other.
    pub fn ratio(&self, other: &Series) -> Option<f64> {
        Some(self.median()? / other.median()?)
    }

    /// `median (min-max)`, or a dash without values.
    pub fn show(&self, unit: fn(f64) -> String) -> String {
        let Some(median) = self.median() else {
            return "-".to_owned();
        };
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.values.iter().copied().fold(0.0, f64::max);
        format!("{} ({}-{})", unit(median), unit(least), unit(most))
    }
}

/// A rate, e.g. `2.60k`, `54.3k`, `249k`, `1.77M`.
pub fn rate(value: f64) -> String {
    match value {
        v if v < 1e3 => format!("{v:.0}"),
        v if v < 1e4 => format!("{:.2}k", v / 1e3),
        v if v < 1e5 => format!("{:.1}k", v / 1e3),
        v if v < 1e6 => format!("{:.0}k", v / 1e3),
        v => format!("{:.2}M", v / 1e6),
    }
}

/// A number with a sensible precision: `0.42`, `4.2`, `42`, `420`.
pub fn number(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.2}"),
        v if v < 20.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// The value below which `part` (0..1) of the sorted values are.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let index = (sorted.len() as f64 * part) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series {
            values: values.to_vec(),
        }
    }

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(series(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(series(&[4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(series(&[]).median(), None);
        assert_eq!(series(&[6.0]).ratio(&series(&[3.0])), Some(2.0));
    }

    #[test]
    fn a_cell_shows_median_and_range() {
        let cell = series(&[2600.0, 2100.0, 249_000.0]).show(rate);
        assert_eq!(cell, "2.60k (2.10k-249k)");
        assert_eq!(series(&[]).show(rate), "-");
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let sorted: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 0.99), 99.0);
        assert_eq!(percentile(&sorted, 1.0), 99.0);
    }
}
