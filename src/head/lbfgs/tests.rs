use linfa::ParamGuard as _;

use super::*;
use crate::head::fit::tests::Small;
use crate::head::{ClassWeights, HeadParams, Solver};

#[test]
fn the_gradient_is_that_of_the_objective() {
    let small = Small::new();
    let labels: Vec<usize> = small.labels.iter().map(|label| label.unwrap() as usize).collect();
    let (train, holdout) = (&small.train, &small.holdout);
    let problem =
        Problem { features: Features::new(small.x.view(), None), labels: &labels, train, holdout, refit: &[], classes: 3 };
    for (smoothing, class_weights) in [
        (None, None),
        (Some(0.2), None),
        (None, Some(ClassWeights::Each(vec![1.0, 2.5, 0.25]))),
        (Some(0.3), Some(ClassWeights::Balanced)),
    ] {
        let params = HeadParams { solver: Solver::Lbfgs, label_smoothing: smoothing, class_weights, ..HeadParams::default() };
        let params = params.check().unwrap();
        let asked = Asked::of(&params, &problem.listed()).unwrap();
        assert!((asked.shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let curvature = Curvature::estimate(&problem, 5, &asked).unwrap();
        let target = Target::new(smoothing.unwrap_or(0.0), asked.weights.clone());
        let mut objective = Loss {
            rows: &problem,
            target: &target,
            l2: 0.1,
            features: 5,
            classes: 3,
            unseen: vec![false; 3],
            preconditioner: curvature.preconditioner(0.1),
            parts: Vec::new(),
            found: Tally::default(),
            error: None,
        };
        let point: Vec<f64> = (0..18).map(|place| f64::from((place * 7 + 3) % 11) / 5.0 - 1.0).collect();
        let mut gradient = vec![0.0; 18];
        objective.evaluate(&point, &mut gradient);
        let step = 1e-2;
        for place in 0..18 {
            let mut at = |away: f64| {
                let mut point = point.clone();
                point[place] += away;
                objective.evaluate(&point, &mut [0.0; 18])
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            assert!((slope - gradient[place]).abs() < 1e-4, "{params:?}, {place}: {slope} for {}", gradient[place]);
        }
    }
}

#[test]
fn rows_that_count_more_are_sampled_more_often() {
    let labels: Vec<usize> = (0..100_000).map(|row| usize::from(row % 100 == 0)).collect();
    let train: Vec<usize> = (0..100_000).collect();
    let listed = Listed { labels: &labels, train: &train, holdout: &[], refit: &[], classes: 2 };
    let of = |class_weights| {
        let params = HeadParams { solver: Solver::Lbfgs, class_weights, ..HeadParams::default() }.check().unwrap();
        let sample = Asked::of(&params, &listed).unwrap().sample(&listed, 8);
        assert!(sample.is_sorted());
        (sample.len(), sample.iter().filter(|&&row| labels[row] == 1).count())
    };
    assert_eq!(of(None).0, 4000);
    let (all, rare) = of(Some(ClassWeights::Balanced));
    assert!(all.abs_diff(4000) <= 1 && rare.abs_diff(2000) <= 20, "{rare} of {all}");
}
