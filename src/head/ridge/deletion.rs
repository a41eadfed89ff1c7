//! Which features a head needs: backward elimination on the statistics alone, no pass over the rows.
//!
//! In each round the features whose deletion costs the objective least go, a third of them, and the others adapt. The cost of one
//! deletion is exact; of many at once it is not, since features stand in for each other, hence the rounds. Unlike a group lasso
//! it shrinks nothing that stays, and the number of features is given instead of a strength that leads to one.

use super::squares::LeastSquares;
use crate::head::HeadError;
use crate::head::statistics::Statistics;

/// Share of the features that a round keeps at least.
const KEPT: f64 = 2.0 / 3.0;

/// The `budget` features that are worth most at this strength of L2, in ascending order.
pub(super) fn select(statistics: &Statistics, l2: f64, budget: usize) -> Result<Vec<usize>, HeadError> {
    let mut kept: Vec<usize> = (0..statistics.features()).collect();
    while kept.len() > budget {
        // In the first round all are there, and nothing is copied.
        let some = (kept.len() < statistics.features()).then_some(kept.as_slice());
        let costs = LeastSquares::new(statistics, some).cost_of_deletion(l2)?;
        let mut order: Vec<usize> = (0..kept.len()).collect();
        order.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]).then(a.cmp(&b)));
        order.truncate(budget.max((kept.len() as f64 * KEPT) as usize));
        order.sort_unstable();
        kept = order.into_iter().map(|place| kept[place]).collect();
    }
    Ok(kept)
}
