//! An ONNX classifier that was not exported here: what is known of it, and what has to be assumed.

use std::fs;
use std::path::Path;

use super::classifier::{Hints, Reading, Scores};
use super::{DeployError, LABELS};
use crate::assets::Located;
use crate::extract::{expected_pixels, layout};
use crate::image::{ImageSpec, Resize, Views};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{self, Model};

/// Looks at a model as its registry card, its graph and the user describe it.
///
/// # Errors
/// When it takes no images, or images of another size than is asked for.
pub(super) fn describe(model: &Model, located: &Located, hints: &Hints) -> Result<Reading, DeployError> {
    const USUAL: u32 = 224;
    let unfit = |reason: String| DeployError::Unfit { model: located.path.clone(), reason };
    let input = onnx::input(model)?;
    let (pixels, assumption) = expected_pixels(model, located, layout(input.layout), hints.pixels)?;
    let mut assumptions: Vec<String> = assumption.into_iter().collect();
    let known = located.card.as_ref().map(|card| card.preprocessing.side);
    if let (Some(fixed), Some(asked)) = (input.side, hints.side)
        && fixed != asked
    {
        return Err(unfit(format!("it takes images of {fixed} pixels only, {asked} asked for; leave --input-size out")));
    }
    if let Some((height, width)) = input.fixed_size().filter(|(height, width)| height != width) {
        return Err(unfit(format!("it takes images of {height} x {width} pixels (height x width), and tlpipe gives it squares")));
    }
    let side = hints.side.or(input.side).or(known).unwrap_or_else(|| {
        assumptions.push(format!(
            "{}: neither a card nor the graph says which size of images it was trained on; {USUAL} px assumed: give --input-size",
            located.path.display()
        ));
        USUAL
    });
    if side == 0 {
        return Err(unfit("images of 0 pixels; give --input-size".to_owned()));
    }
    let graph = model.proto().graph.as_ref();
    let output = graph.and_then(|graph| {
        let named = |name: &str| graph.output.iter().find(|output| output.name() == name);
        named(super::PROBABILITIES).or_else(|| graph.output.first()).map(|output| output.name().to_owned())
    });
    let output = output.ok_or_else(|| unfit("it has no output".to_owned()))?;
    Ok(Reading {
        classes: Vec::new(),
        own_size: false,
        spec: ImageSpec { side, resize: hints.resize.unwrap_or(Resize::Squash), pixels, views: Views::default() },
        scores: graph.map_or(Scores::Logits, |graph| scores(graph, &output)),
        fixed_batch: input.batch().and_then(|batch| usize::try_from(batch).ok()).filter(|&batch| batch > 0),
        output,
        assumptions,
    })
}

/// Whether an output comes out of a softmax or a sigmoid, but for what only changes its shape.
fn scores(graph: &GraphProto, output: &str) -> Scores {
    let maker = |name: &str| graph.node.iter().find(|node| node.output.iter().any(|made| made == name));
    let mut next = maker(output);
    for _ in 0..graph.node.len() {
        match next.map(NodeProto::op_type) {
            Some("Softmax" | "Sigmoid") => return Scores::Probabilities,
            Some("Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Cast") => {
                next = next.and_then(|node| node.input.first()).and_then(|name| maker(name));
            }
            _ => break,
        }
    }
    // Softmax of the logarithm of a softmax is that softmax.
    Scores::Logits
}

/// Names of so many classes: the user's, those of a `NAME.labels.txt` or `labels.txt` beside the model that fits, else their numbers.
///
/// # Errors
/// When the user's cannot be read, or are not as many.
pub(super) fn class_names(
    model: &Path,
    classes: usize,
    hints: &Hints,
    assumptions: &mut Vec<String>,
) -> Result<Vec<String>, DeployError> {
    let unfit = |reason: String| DeployError::Unfit { model: model.to_owned(), reason };
    if classes == 0 {
        return Err(unfit("its answer is empty".to_owned()));
    }
    let names = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    if let Some(labels) = &hints.labels {
        let read = fs::read_to_string(labels).map(names);
        let names = read.map_err(|source| DeployError::Labels { path: labels.clone(), reason: source.to_string() })?;
        if names.len() != classes {
            let reason = format!("{} lines, and {} answers with {classes} classes", names.len(), model.display());
            return Err(DeployError::Labels { path: labels.clone(), reason });
        }
        return Ok(names);
    }
    let stem = model.file_stem().unwrap_or_default().to_string_lossy();
    let beside = [format!("{stem}.{LABELS}"), LABELS.to_owned()].map(|name| fs::read_to_string(model.with_file_name(name)));
    if let Some(names) = beside.into_iter().flatten().map(names).find(|names| names.len() == classes) {
        return Ok(names);
    }
    assumptions.push(format!(
        "{}: it does not name its {classes} classes, so they are numbers: give --labels FILE, a name a line",
        model.display()
    ));
    Ok((0..classes).map(|class| class.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::networks;

    #[test]
    fn logits_are_told_from_probabilities() {
        let model = networks::resnet(13);
        let mut graph = model.proto().graph.clone().unwrap();
        assert_eq!(scores(&graph, graph.output[0].name()), Scores::Probabilities);
        let softmax = graph.node.iter().find(|node| node.op_type() == "Softmax").unwrap();
        let output = softmax.input[0].clone();
        assert_eq!(scores(&graph, &output), Scores::Logits);
        let node = |op: &str, from: &str, to: &str| NodeProto {
            op_type: Some(op.to_owned()),
            input: vec![from.to_owned()],
            output: vec![to.to_owned()],
            ..NodeProto::default()
        };
        graph.node.push(node("Softmax", &output, "soft"));
        graph.node.push(node("Reshape", "soft", "flat"));
        graph.node.push(node("LogSoftmax", &output, "log"));
        assert_eq!(
            ["soft", "flat", "log"].map(|name| scores(&graph, name)),
            [Scores::Probabilities, Scores::Probabilities, Scores::Logits]
        );
    }

    #[test]
    fn names_are_the_users_or_those_beside_the_model_or_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let (model, labels) = (folder.path().join("m.onnx"), folder.path().join("labels.txt"));
        let names = |hints: &Hints| class_names(&model, 2, hints, &mut Vec::new());
        assert_eq!(names(&Hints::default()).unwrap(), ["0", "1"]);
        fs::write(&labels, "cat\ndog, wolf\n").unwrap();
        assert_eq!(names(&Hints::default()).unwrap(), ["cat", "dog, wolf"]);
        // Where two models share a folder, the second one's.
        fs::write(folder.path().join("m.labels.txt"), "fox\nhen\n").unwrap();
        assert_eq!(names(&Hints::default()).unwrap(), ["fox", "hen"]);
        let other = folder.path().join("other.txt");
        fs::write(&other, "a\nb\nc\n").unwrap();
        let said = names(&Hints { labels: Some(other), ..Hints::default() }).unwrap_err().to_string();
        assert!(said.contains("other.txt: 3 lines") && said.contains("2 classes"), "{said}");
    }
}
