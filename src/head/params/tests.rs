use super::*;

#[test]
fn values_out_of_range_are_named() {
    let base = HeadParams::default();
    let cases = [
        ("epochs", HeadParams { epochs: 0, ..base.clone() }),
        ("batch_size", HeadParams { batch_size: 0, ..base.clone() }),
        ("learning_rate", HeadParams { learning_rate: f64::NAN, ..base.clone() }),
        ("learning_rate", HeadParams { learning_rate: -1e-3, ..base.clone() }),
        ("validation_split", HeadParams { validation_split: 1.0, ..base.clone() }),
        ("validation_split", HeadParams { validation_split: f64::NAN, ..base.clone() }),
        ("l2", HeadParams { l2: Some(-1.0), solver: Solver::Linfa, ..base.clone() }),
        ("l2", HeadParams { l2: Some(-0.1), ..base.clone() }),
        ("l2", HeadParams { l2: Some(f64::INFINITY), solver: Solver::Linfa, ..base.clone() }),
        ("standardize", HeadParams { standardize: Some(false), solver: Solver::Linfa, ..base.clone() }),
        ("group", HeadParams { group: Some("_".into()), ..base.clone() }),
        ("group", HeadParams { group: Some(String::new()), split: Some(HoldOut::Grouped), ..base.clone() }),
        ("max_iterations", HeadParams { max_iterations: Some(0), solver: Solver::Linfa, ..base.clone() }),
        ("max_iterations", HeadParams { max_iterations: Some(9), ..base.clone() }),
        ("tolerance", HeadParams { tolerance: Some(0.0), solver: Solver::Lbfgs, ..base.clone() }),
        ("tolerance", HeadParams { tolerance: Some(1e-3), solver: Solver::Ridge, ..base.clone() }),
        ("memory", HeadParams { memory: Some(0), ..base.clone() }),
        ("weight_decay", HeadParams { weight_decay: Some(-0.1), ..base.clone() }),
        ("label_smoothing", HeadParams { label_smoothing: Some(1.0), ..base.clone() }),
        ("dropout", HeadParams { dropout: Some(f64::NAN), ..base.clone() }),
        ("class_weights", HeadParams { class_weights: Some(ClassWeights::Each(vec![1.0, -1.0])), ..base.clone() }),
        ("class_weights", HeadParams { class_weights: Some(ClassWeights::Each(vec![0.0, 0.0])), ..base.clone() }),
        ("warmup", HeadParams { warmup: Some(1.0), ..base.clone() }),
        ("step_epochs", HeadParams { step_epochs: Some(0), schedule: Some(Schedule::Step), ..base.clone() }),
        ("step_epochs", HeadParams { step_epochs: Some(2), schedule: Some(Schedule::Cosine), ..base.clone() }),
        ("step_factor", HeadParams { step_factor: Some(0.0), schedule: Some(Schedule::Step), ..base.clone() }),
        ("step_factor", HeadParams { step_factor: Some(0.5), ..base.clone() }),
        ("patience", HeadParams { patience: Some(0), ..base.clone() }),
        ("min_delta", HeadParams { min_delta: Some(-1.0), patience: Some(2), ..base.clone() }),
        ("min_delta", HeadParams { min_delta: Some(0.1), ..base.clone() }),
        ("label_smoothing", HeadParams { label_smoothing: Some(1.0), solver: Solver::Lbfgs, ..base.clone() }),
        ("dropout", HeadParams { dropout: Some(0.1), solver: Solver::Lbfgs, ..base.clone() }),
        ("knn_k", HeadParams { knn_k: Some(0), ..base.clone() }),
        ("knn_k", HeadParams { knn_k: Some(1001), ..base.clone() }),
        ("knn_temperature", HeadParams { knn_temperature: Some(0.0), ..base.clone() }),
    ];
    for (name, params) in cases {
        let message = params.check().unwrap_err().to_string();
        assert!(message.starts_with(&format!("head.{name} = ")), "{message}");
    }
    assert_eq!(**base.check_ref().unwrap(), base);
}

#[test]
fn what_a_solver_does_not_have_is_refused() {
    let both = "solver = \"lbfgs\"\nlabel_smoothing = 0.1\nclass_weights = [1.0, 2.0]";
    assert!(toml::from_str::<HeadParams>(both).unwrap().check().is_ok());
    let all = "weight_decay = 0.1\nlabel_smoothing = 0.1\ndropout = 0.1\nclass_weights = \"balanced\"\nschedule = \"step\"\n\
        warmup = 0.1\nstep_epochs = 2\nstep_factor = 0.5\npatience = 3\nmin_delta = 0.01\n";
    assert!(toml::from_str::<HeadParams>(all).unwrap().check().is_ok());
    for line in all.lines() {
        let message =
            toml::from_str::<HeadParams>(&format!("solver = \"linfa\"\n{line}")).unwrap().check().unwrap_err().to_string();
        let key = line.split(' ').next().unwrap();
        assert!(message.starts_with(&format!("head.{key} = ")) && message.contains("take it out"), "{message}");
    }
}

#[test]
fn a_head_table_is_read_and_a_typo_refused() {
    let params: HeadParams = toml::from_str("solver = \"linfa\"\nsplit = \"stratified\"\nlearning_rate = 1").unwrap();
    let expected =
        HeadParams { solver: Solver::Linfa, split: Some(HoldOut::Stratified), learning_rate: 1.0, ..HeadParams::default() };
    assert_eq!(params, expected);
    assert_eq!(params.solver.to_string(), "linfa");
    let params = params.check().unwrap();
    assert!(params.standardize() && params.l2() > 0.0);
    let error = toml::from_str::<HeadParams>("epoch = 3").unwrap_err().to_string();
    assert!(error.contains("epoch"), "{error}");
}
