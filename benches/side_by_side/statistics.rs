//! Figures of many rounds go in; a median comes out, and how far it can be trusted.

/// An estimate and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// The median, or the quotient of lower quartiles.
    pub(crate) median: f64,
    /// The interval's lower end.
    pub(crate) low: f64,
    /// The interval's upper end.
    pub(crate) high: f64,
}

/// The median of `figures`, and the interval between two of them that holds the true median with at least 95 %.
///
/// The interval is that of the binomial order statistics: each round falls below the true median with probability one
/// half, whatever the distribution, so counting is enough and outliers do no harm. For less than 6 figures there is no
/// such interval, and it is the whole range.
///
/// # Panics
///
/// If there is no figure, or one is not a number.
pub(crate) fn estimate(figures: &[f64]) -> Estimate {
    let mut sorted = figures.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("figures are numbers"));
    let rank = rank(sorted.len());
    Estimate { median: middle(&sorted), low: sorted[rank], high: sorted[sorted.len() - 1 - rank] }
}

/// The quotient of the lower quartiles of two series, and its 95 % interval.
///
/// For figures of the tail. On a machine that is shared, up to half of the rounds meet a burst of something else's
/// work, which makes their tails several times as large; a median then falls into the one kind or the other by chance.
/// The lower quartile lies among the rounds without, as long as a burst meets fewer than three of four. What a series
/// does by itself in more than a quarter of its rounds shows in it. The interval is that of the bootstrap: rounds are
/// drawn anew many times, with what both did in them, and the quotients of all but 2.5 % at each end lie in it. A round
/// that was slow for both is drawn for both.
///
/// # Panics
///
/// If there is no figure, one is not a number, or the series differ in length.
pub(crate) fn quotient_of_quartiles(mine: &[f64], theirs: &[f64]) -> Estimate {
    assert_eq!(mine.len(), theirs.len(), "each round has a figure of both");
    let mut random = fastrand::Rng::with_seed(1);
    let mut quotients: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let rounds: Vec<usize> = mine.iter().map(|_| random.usize(..mine.len())).collect();
            let drawn = |figures: &[f64]| quartile(&rounds.iter().map(|&round| figures[round]).collect::<Vec<_>>());
            drawn(mine) / drawn(theirs)
        })
        .collect();
    quotients.sort_by(|a, b| a.partial_cmp(b).expect("figures are numbers"));
    let cut = RESAMPLES / 40;
    Estimate { median: quartile(mine) / quartile(theirs), low: quotients[cut], high: quotients[RESAMPLES - 1 - cut] }
}

const RESAMPLES: usize = 2_000;

/// A quarter of `figures` lies below it.
fn quartile(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("figures are numbers"));
    sorted[sorted.len() / 4]
}

/// The median of `figures`.
///
/// # Panics
///
/// If there is no figure, or one is not a number.
pub(crate) fn median(figures: &[f64]) -> f64 {
    estimate(figures).median
}

/// The value below which so many thousandths of `sorted` lie, or 0 where there is none.
pub(crate) fn quantile(sorted: &[u32], thousandths: usize) -> f64 {
    let index = (sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().map_or(0.0, f64::from)
}

/// A count as a figure.
pub(crate) fn figure(count: usize) -> f64 {
    // Counts of calls in a few seconds: far below the limit.
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// A figure without the digits that mean nothing.
pub(crate) fn rounded(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

fn middle(sorted: &[f64]) -> f64 {
    let upper = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[upper] } else { f64::midpoint(sorted[upper - 1], sorted[upper]) }
}

/// How many figures may be cut off at each end: the most that leave no more than 2.5 % on that side.
fn rank(count: usize) -> usize {
    let mut probability = 0.5_f64.powf(figure(count));
    let (mut cumulated, mut rank) = (0.0, 0);
    while rank < count / 2 {
        cumulated += probability;
        if cumulated > 0.025 {
            return rank.saturating_sub(1);
        }
        rank += 1;
        probability *= figure(count + 1 - rank) / figure(rank);
    }
    rank.saturating_sub(1)
}
