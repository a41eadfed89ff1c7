//! What each operator does to shapes. An operator that is not here leaves its outputs unknown, which is never wrong.

use super::proto::NodeProto;
use super::shapes::{Shape, Shapes, constant_integers};
use super::tensor::{constant_value, int, ints, text};

/// Shapes of a node's outputs; an error says why its inputs do not fit together.
pub(super) fn outputs(node: &NodeProto, known: &Shapes) -> Result<Vec<Option<Shape>>, String> {
    if !(node.domain().is_empty() || node.domain() == "ai.onnx") {
        return Ok(vec![]);
    }
    let first = known.input(node, 0);
    let one = |shape: Option<Shape>| Ok(vec![shape]);
    match node.op_type() {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Sum" | "Mean" | "Mod" | "Where" | "Equal" | "Greater"
        | "Less" | "GreaterOrEqual" | "LessOrEqual" | "And" | "Or" | "PRelu" => {
            if known.opset() < 7 {
                one(first.cloned())
            } else {
                one(broadcast_all(node, known)?)
            }
        }
        "Constant" => one(constant_value(node).map(|tensor| tensor.dims.into_iter().map(Some).collect())),
        "Conv" => one(convolution(node, known)?),
        "MaxPool" | "AveragePool" | "LpPool" => one(first.map(|input| pool(node, input))),
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
            one(first.map(|input| input.iter().enumerate().map(|(axis, &size)| if axis < 2 { size } else { Some(1) }).collect()))
        }
        "Gemm" => one(gemm(node, known)?),
        "MatMul" => one(matmul(node, known)?),
        "Flatten" => one(first.map(|input| flatten(node, input))),
        "Reshape" => one(reshape(node, known)?),
        "Transpose" => one(first.map(|input| match ints(node, "perm") {
            Some(perm) => perm.iter().map(|&axis| usize::try_from(axis).ok().and_then(|axis| *input.get(axis)?)).collect(),
            None => input.iter().rev().copied().collect(),
        })),
        "Squeeze" => one(first.and_then(|input| squeeze(node, known, input))),
        "Unsqueeze" => one(first.and_then(|input| unsqueeze(node, known, input))),
        "Concat" => one(concat(node, known)?),
        "Slice" => one(first.map(|input| slice(node, known, input))),
        "Split" => Ok(first.map(|input| split(node, known, input)).unwrap_or_default()),
        "Gather" => one(gather(node, known)),
        "Pad" => one(first.map(|input| pad(node, known, input))),
        "Expand" => one(expand(node, known)?),
        "ConstantOfShape" => one(known.value(node, 0).cloned()),
        "Shape" => one(values(node, known).map(|sizes| vec![Some(length(sizes.len()))])),
        "Resize" | "Upsample" => one(first.map(|input| resize(node, known, input))),
        op if op.starts_with("Reduce") => one(first.and_then(|input| reduce(node, known, input))),
        "ArgMax" | "ArgMin" => one(first.map(|input| {
            let axis = axis(int(node, "axis").unwrap_or(0), input.len());
            remove(input, &[axis], int(node, "keepdims").unwrap_or(1) != 0)
        })),
        op if keeps_shape(op) => one(first.cloned()),
        _ => Ok(vec![]),
    }
}

/// Operators whose first output is shaped like their first input.
fn keeps_shape(op: &str) -> bool {
    is_activation(op)
        || matches!(
            op,
            "Identity"
                | "Dropout"
                | "Cast"
                | "CastLike"
                | "BatchNormalization"
                | "InstanceNormalization"
                | "LayerNormalization"
                | "GroupNormalization"
                | "RMSNormalization"
                | "LpNormalization"
                | "MeanVarianceNormalization"
                | "LRN"
                | "Softmax"
                | "LogSoftmax"
                | "Hardmax"
                | "QuantizeLinear"
                | "DequantizeLinear"
                | "Exp"
                | "Log"
                | "Sqrt"
                | "Reciprocal"
                | "Abs"
                | "Neg"
                | "Floor"
                | "Ceil"
                | "Round"
                | "Sign"
                | "Erf"
                | "Not"
                | "CumSum"
                | "Sin"
                | "Cos"
        )
}

/// Element-wise operators that stand between the layers of a network.
pub(super) fn is_activation(op: &str) -> bool {
    matches!(
        op,
        "Relu"
            | "Clip"
            | "LeakyRelu"
            | "Elu"
            | "Selu"
            | "Celu"
            | "Gelu"
            | "Mish"
            | "Softplus"
            | "Softsign"
            | "Sigmoid"
            | "HardSigmoid"
            | "HardSwish"
            | "Swish"
            | "Tanh"
            | "ThresholdedRelu"
    )
}

/// Contents of the small integer tensors by which graphs compute shapes.
pub(super) fn values(node: &NodeProto, known: &Shapes) -> Option<Shape> {
    let first = || known.value(node, 0);
    match node.op_type() {
        "Constant" => constant_integers(node),
        "Shape" => {
            let input = known.input(node, 0)?;
            let at = |name, default| int(node, name).map_or(default, |value| bound(value, input.len()));
            let (start, end) = (at("start", 0), at("end", input.len()));
            Some(input.get(start..end.max(start))?.to_vec())
        }
        "Identity" | "Cast" | "Squeeze" | "Unsqueeze" | "Reshape" => first().cloned(),
        "Gather" => {
            let data = first()?;
            known.value(node, 1)?.iter().map(|index| data.get(axis((*index)?, data.len())).copied()).collect()
        }
        "Concat" => {
            let parts: Option<Vec<&Shape>> = (0..node.input.len()).map(|index| known.value(node, index)).collect();
            Some(parts?.into_iter().flatten().copied().collect())
        }
        "Slice" => {
            let data = first()?;
            let single = |name, index| known.list(node, name, index).and_then(|values| values.first().copied());
            if known.value(node, 4).is_some_and(|steps| steps != &[Some(1)]) {
                return None;
            }
            let (start, end) = (bound(single("starts", 1)?, data.len()), bound(single("ends", 2)?, data.len()));
            data.get(start..end.max(start)).map(<[_]>::to_vec)
        }
        "Add" | "Sub" | "Mul" | "Div" => {
            let (a, b) = (first()?, known.value(node, 1)?);
            let count = a.len().max(b.len());
            let at = |values: &Shape, index: usize| if values.len() == 1 { values[0] } else { *values.get(index)? };
            let apply = |index| {
                let (a, b) = (at(a, index)?, at(b, index)?);
                match node.op_type() {
                    "Add" => a.checked_add(b),
                    "Sub" => a.checked_sub(b),
                    "Mul" => a.checked_mul(b),
                    _ => a.checked_div(b),
                }
            };
            Some((0..count).map(apply).collect())
        }
        _ => None,
    }
}

fn length(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// An axis or index counted from the end where negative; out of range stays out of range.
fn axis(value: i64, rank: usize) -> usize {
    let value = if value < 0 { value.saturating_add(length(rank)) } else { value };
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A slice's border, clamped as ONNX does.
fn bound(value: i64, size: usize) -> usize {
    let value = if value < 0 { value.saturating_add(length(size)).max(0) } else { value };
    usize::try_from(value).unwrap_or(usize::MAX).min(size)
}

fn product(shape: &[Option<i64>]) -> Option<i64> {
    shape.iter().try_fold(1_i64, |product, size| product.checked_mul((*size)?))
}

fn show(shape: &[Option<i64>]) -> String {
    let sizes: Vec<String> = shape.iter().map(|size| size.map_or("?".to_owned(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}

fn broadcast(a: &[Option<i64>], b: &[Option<i64>]) -> Result<Shape, String> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Option<i64>], index: usize| (index + shape.len()).checked_sub(rank).map_or(Some(1), |index| shape[index]);
    let fit = |index| match (at(a, index), at(b, index)) {
        (Some(1), other) | (other, Some(1)) => Ok(other),
        (Some(a), Some(b)) if a != b => Err(()),
        (Some(size), _) | (_, Some(size)) => Ok(Some(size)),
        (None, None) => Ok(None),
    };
    (0..rank).map(fit).collect::<Result<_, ()>>().map_err(|()| format!("{} does not fit {}", show(a), show(b)))
}

fn broadcast_all(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    let mut result: Option<Shape> = None;
    for index in 0..node.input.len() {
        let Some(shape) = known.input(node, index) else { return Ok(None) };
        result = Some(match result {
            Some(before) => broadcast(&before, shape)?,
            None => shape.clone(),
        });
    }
    Ok(result)
}

/// Size of one spatial axis after a window has moved over it.
fn window(node: &NodeProto, size: Option<i64>, kernel: i64, place: usize, places: usize) -> Option<i64> {
    let at = |name: &str, index: usize, default: i64| ints(node, name).and_then(|v| v.get(index).copied()).unwrap_or(default);
    let (size, stride) = (size?, at("strides", place, 1).max(1));
    let reach = kernel.checked_sub(1)?.checked_mul(at("dilations", place, 1))?.checked_add(1)?;
    let rounded_up = |span: i64| span.checked_add(stride - 1).map(|span| span / stride);
    match text(node, "auto_pad") {
        Some("SAME_UPPER" | "SAME_LOWER") => rounded_up(size),
        mode => {
            let padding = match mode {
                Some("VALID") => 0,
                _ => at("pads", place, 0).checked_add(at("pads", place.checked_add(places)?, 0))?,
            };
            let span = size.checked_add(padding)?.checked_sub(reach)?;
            if span < 0 {
                return Some(-1);
            }
            let steps = if int(node, "ceil_mode").unwrap_or(0) == 0 { span / stride } else { rounded_up(span)? };
            steps.checked_add(1)
        }
    }
}

fn convolution(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    let Some(weight) = known.input(node, 1).filter(|weight| weight.len() >= 3) else { return Ok(None) };
    let input = known.input(node, 0).cloned().unwrap_or_else(|| vec![None; weight.len()]);
    if input.len() != weight.len() {
        return Err(format!("{} does not fit the kernel {}", show(&input), show(weight)));
    }
    if let (Some(channels), Some(per_group)) = (input[1], weight[1])
        && per_group.checked_mul(int(node, "group").unwrap_or(1)) != Some(channels)
    {
        return Err(format!("{channels} channels, the kernel {} takes another number", show(weight)));
    }
    let places = weight.len() - 2;
    let spatial = (0..places).map(|place| window(node, input[place + 2], weight[place + 2]?, place, places));
    Ok(Some([input[0], weight[0]].into_iter().chain(spatial).collect()))
}

fn pool(node: &NodeProto, input: &Shape) -> Shape {
    let Some(kernel) = ints(node, "kernel_shape") else { return vec![None; input.len()] };
    let sizes = input.iter().enumerate().map(|(axis, &size)| match axis.checked_sub(2) {
        Some(place) => kernel.get(place).and_then(|&kernel| window(node, size, kernel, place, input.len() - 2)),
        None => size,
    });
    sizes.collect()
}

fn gemm(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    let pair = |index: usize, transposed: &str| {
        let shape = known.input(node, index).filter(|shape| shape.len() == 2)?;
        Some(if int(node, transposed).unwrap_or(0) == 0 { (shape[0], shape[1]) } else { (shape[1], shape[0]) })
    };
    let Some((inner, columns)) = pair(1, "transB") else { return Ok(Some(vec![None, None])) };
    let rows = match pair(0, "transA") {
        Some((_, Some(depth))) if inner.is_some_and(|inner| inner != depth) => {
            return Err(format!("rows of {depth} values, the weights take {}", inner.unwrap_or_default()));
        }
        Some((rows, _)) => rows,
        None => None,
    };
    Ok(Some(vec![rows, columns]))
}

fn matmul(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    let (Some(a), Some(b)) = (known.input(node, 0), known.input(node, 1)) else { return Ok(None) };
    let ([a_outer @ .., rows, depth], [b_outer @ .., inner, columns]) = (a.as_slice(), b.as_slice()) else { return Ok(None) };
    if let (Some(depth), Some(inner)) = (depth, inner)
        && depth != inner
    {
        return Err(format!("{} does not fit {}", show(a), show(b)));
    }
    let mut result = broadcast(a_outer, b_outer)?;
    result.extend([*rows, *columns]);
    Ok(Some(result))
}

fn flatten(node: &NodeProto, input: &Shape) -> Shape {
    let axis = axis(int(node, "axis").unwrap_or(1), input.len()).min(input.len());
    vec![product(&input[..axis]), product(&input[axis..])]
}

fn reshape(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    let target: Option<Shape> = match ints(node, "shape") {
        Some(shape) => Some(shape.iter().copied().map(Some).collect()),
        None => known.value(node, 1).cloned(),
    };
    let Some(target) = target else {
        // The length of the target is the number of axes.
        return Ok(known.input(node, 1).and_then(|shape| shape.first().copied()?).and_then(unknown));
    };
    let input = known.input(node, 0);
    let copies = int(node, "allowzero").unwrap_or(0) == 0;
    let mut result: Shape = target
        .iter()
        .enumerate()
        .map(|(axis, &size)| if size == Some(0) && copies { input.and_then(|input| *input.get(axis)?) } else { size })
        .collect();
    let hole = result.iter().position(|&size| size == Some(-1));
    let total = input.and_then(|input| product(input));
    let Some(hole) = hole else {
        return match (total, product(&result)) {
            (Some(total), Some(new)) if total != new => {
                Err(format!("{} cannot become {}", show(input.map_or(&[], Vec::as_slice)), show(&result)))
            }
            _ => Ok(Some(result)),
        };
    };
    result[hole] = Some(1);
    let rest = product(&result);
    result[hole] = match (total, rest) {
        (Some(total), Some(rest)) if rest > 0 && total % rest == 0 => Some(total / rest),
        (Some(_), Some(_)) => {
            return Err(format!("{} cannot become {}", show(input.map_or(&[], Vec::as_slice)), show(&target)));
        }
        _ => None,
    };
    Ok(Some(result))
}

fn unknown(rank: i64) -> Option<Shape> {
    usize::try_from(rank).ok().filter(|&rank| rank <= 16).map(|rank| vec![None; rank])
}

fn remove(input: &Shape, axes: &[usize], keep: bool) -> Shape {
    let kept = input.iter().enumerate().filter_map(|(index, &size)| match axes.contains(&index) {
        true if keep => Some(Some(1)),
        true => None,
        false => Some(size),
    });
    kept.collect()
}

fn squeeze(node: &NodeProto, known: &Shapes, input: &Shape) -> Option<Shape> {
    if let Some(axes) = known.list(node, "axes", 1) {
        let axes: Vec<usize> = axes.into_iter().map(|value| axis(value, input.len())).collect();
        return Some(remove(input, &axes, false));
    }
    if node.input.len() > 1 || input.iter().any(Option::is_none) {
        return None;
    }
    Some(input.iter().copied().filter(|&size| size != Some(1)).collect())
}

fn unsqueeze(node: &NodeProto, known: &Shapes, input: &Shape) -> Option<Shape> {
    let axes = known.list(node, "axes", 1)?;
    let rank = input.len() + axes.len();
    let axes: Vec<usize> = axes.into_iter().map(|value| axis(value, rank)).collect();
    let mut sizes = input.iter().copied();
    (0..rank).map(|index| if axes.contains(&index) { Some(Some(1)) } else { sizes.next() }).collect()
}

fn concat(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    let parts: Option<Vec<&Shape>> = (0..node.input.len()).map(|index| known.input(node, index)).collect();
    let Some(parts) = parts else { return Ok(None) };
    let Some((&first, rest)) = parts.split_first() else { return Ok(None) };
    let along = axis(int(node, "axis").unwrap_or(1), first.len());
    let mut result = first.clone();
    for part in rest {
        if part.len() != result.len() {
            return Err(format!("{} beside {}", show(&result), show(part)));
        }
        for (index, (size, &other)) in result.iter_mut().zip(*part).enumerate() {
            if index == along {
                *size = size.zip(other).and_then(|(a, b)| a.checked_add(b));
            } else if let (Some(a), Some(b)) = (*size, other)
                && a != b
            {
                return Err(format!("{} beside {}", show(first), show(part)));
            } else {
                *size = size.or(other);
            }
        }
    }
    Ok(Some(result))
}

fn slice(node: &NodeProto, known: &Shapes, input: &Shape) -> Shape {
    let sliced = || {
        let starts = known.list(node, "starts", 1)?;
        let ends = known.list(node, "ends", 2)?;
        let axes = known.list(node, "axes", 3).unwrap_or_else(|| (0..length(starts.len())).collect());
        let steps = known.list(node, "steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
        let mut result = input.clone();
        for (((start, end), along), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
            let size = result.get_mut(axis(along, input.len()))?;
            *size = match size.and_then(|size| usize::try_from(size).ok()) {
                Some(whole) if step > 0 => {
                    let span = length(bound(end, whole).saturating_sub(bound(start, whole)));
                    span.checked_add(step - 1).map(|span| span / step)
                }
                _ => None,
            };
        }
        Some(result)
    };
    sliced().unwrap_or_else(|| vec![None; input.len()])
}

fn split(node: &NodeProto, known: &Shapes, input: &Shape) -> Vec<Option<Shape>> {
    let along = axis(int(node, "axis").unwrap_or(0), input.len());
    let sizes = known.list(node, "split", 1);
    let count = length(node.output.len()).max(1);
    let part = |index: usize| {
        let mut shape = input.clone();
        let whole = *shape.get(along)?;
        *shape.get_mut(along)? = match &sizes {
            Some(sizes) => sizes.get(index).copied(),
            None => whole.filter(|whole| whole % count == 0).map(|whole| whole / count),
        };
        Some(shape)
    };
    (0..node.output.len()).map(part).collect()
}

fn gather(node: &NodeProto, known: &Shapes) -> Option<Shape> {
    let (input, indices) = (known.input(node, 0)?, known.input(node, 1)?);
    let along = axis(int(node, "axis").unwrap_or(0), input.len());
    let (before, after) = (input.get(..along)?, input.get(along..)?.get(1..)?);
    Some([before, indices.as_slice(), after].concat())
}

fn pad(node: &NodeProto, known: &Shapes, input: &Shape) -> Shape {
    let rank = input.len();
    match known.list(node, "pads", 1) {
        Some(pads) if pads.len() == 2 * rank && node.input.len() < 4 => {
            let padded = |index: usize| input[index]?.checked_add(pads[index])?.checked_add(pads[index + rank]);
            (0..rank).map(padded).collect()
        }
        _ => vec![None; rank],
    }
}

fn expand(node: &NodeProto, known: &Shapes) -> Result<Option<Shape>, String> {
    match (known.input(node, 0), known.value(node, 1)) {
        (Some(input), Some(target)) => broadcast(input, target).map(Some),
        _ => Ok(None),
    }
}

fn resize(node: &NodeProto, known: &Shapes, input: &Shape) -> Shape {
    if let Some(sizes) = known.value(node, 3).filter(|sizes| sizes.len() == input.len()) {
        return sizes.clone();
    }
    let scales = if node.op_type() == "Upsample" || known.opset() < 11 { 1 } else { 2 };
    match known.floats(node, scales) {
        Some(scales) if scales.len() == input.len() => {
            #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // image sizes
            let scaled = |(size, scale): (&Option<i64>, f64)| size.map(|size| (size as f64 * scale).floor() as i64);
            input.iter().zip(scales).map(scaled).collect()
        }
        _ => vec![None; input.len()],
    }
}

fn reduce(node: &NodeProto, known: &Shapes, input: &Shape) -> Option<Shape> {
    let keep = int(node, "keepdims").unwrap_or(1) != 0;
    let axes: Vec<usize> = match known.list(node, "axes", 1) {
        Some(axes) => axes.into_iter().map(|value| axis(value, input.len())).collect(),
        None if node.input.len() > 1 && !node.input[1].is_empty() => return keep.then(|| vec![None; input.len()]),
        None if int(node, "noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
        None => (0..input.len()).collect(),
    };
    Some(remove(input, &axes, keep))
}
