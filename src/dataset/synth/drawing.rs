//! The pictures themselves: signed distances, colours, nuisance.
//!
//! Every class is one signed distance: negative inside the figure, zero on its edge. A picture is a backdrop (a gradient
//! between two colours under smooth noise, with a few stray strokes), the figure's ink laid over it with anti-aliased
//! edges, an uneven light, and sensor noise. Only additions, multiplications, divisions and square roots are used, all of
//! which IEEE 754 defines to the bit, so a seed gives the same bytes on every platform.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

type Point = [f32; 2];
type Colour = [f32; 3];

/// What a picture can show: shapes stand alone, textures fill the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Disc,
    Ring,
    Square,
    Triangle,
    Cross,
    Star,
    Stripes,
    Zigzag,
    Checkerboard,
    Dots,
    Ellipse,
    Rectangle,
    Crescent,
    HalfDisc,
    Pentagon,
    Tee,
    Trefoil,
    Frame,
    Grid,
    Bricks,
    Waves,
    Dashes,
    Lattice,
    Target,
    Pluses,
    Rings,
}

use Figure::{
    Bricks, Checkerboard, Crescent, Cross, Dashes, Disc, Dots, Ellipse, Frame, Grid, HalfDisc, Lattice, Pentagon, Pluses,
    Rectangle, Ring, Rings, Square, Star, Stripes, Target, Tee, Trefoil, Triangle, Waves, Zigzag,
};

/// The figures of the data set, in the order of the labels.
pub(super) const FIGURES: [Figure; 10] = [Disc, Ring, Square, Triangle, Cross, Star, Stripes, Zigzag, Checkerboard, Dots];

/// The figures that a backbone may be trained on beforehand: none of [`FIGURES`].
pub(super) const PRETRAINING_FIGURES: [Figure; 16] = [
    Ellipse, Rectangle, Crescent, HalfDisc, Pentagon, Tee, Trefoil, Frame, Grid, Bricks, Waves, Dashes, Lattice, Target, Pluses,
    Rings,
];

impl Figure {
    fn is_texture(self) -> bool {
        matches!(
            self,
            Stripes | Zigzag | Checkerboard | Dots | Grid | Bricks | Waves | Dashes | Lattice | Target | Pluses | Rings
        )
    }

    /// Signed distance at `p`, in units of the figure: a shape fits the unit circle, a texture repeats about every unit.
    /// `proportion` (0 to 1) is the freedom within a class: how thick a ring, how broad a stripe.
    fn distance(self, p: Point, proportion: f32) -> f32 {
        let [x, y] = p;
        let cell = [nearest(x), nearest(y)];
        match self {
            Disc => length(p) - 0.9,
            Ring => (length(p) - 0.72).abs() - (0.12 + 0.14 * proportion),
            Square => rectangle(p, 0.8, 0.8),
            Triangle => regular(TRIANGLE, p)[0] - 0.5,
            Cross => plus(p, 1.0, 0.2 + 0.15 * proportion),
            // A pentagram: the points that lie outside at most one of the five lines.
            Star => regular(PENTAGON, p)[1] - 0.36,
            Stripes => stripe(x, proportion),
            Zigzag => stripe(x + 1.1 * nearest(y * 0.6).abs(), proportion) * 0.8,
            Checkerboard => {
                let [a, b] = cell.map(|offset| 0.25 - offset.abs());
                a.abs().min(b.abs()) * if (a < 0.0) == (b < 0.0) { 1.0 } else { -1.0 }
            }
            Dots => length(cell) - (0.2 + 0.14 * proportion),
            Ellipse => (length([x, y * (1.7 + 0.8 * proportion)]) - 0.98) * 0.6,
            Rectangle => rectangle(p, 0.92, 0.3 + 0.2 * proportion),
            Crescent => (length(p) - 0.95).max(0.8 - length([x - 0.4 - 0.2 * proportion, y])),
            HalfDisc => (length([x, y - 0.4]) - 0.95).max(y - 0.4),
            Pentagon => regular(PENTAGON, p)[0] - 0.76,
            Tee => {
                rectangle([x, y + 0.6], 0.75, 0.2 + 0.1 * proportion).min(rectangle([x, y - 0.1], 0.2 + 0.1 * proportion, 0.8))
            }
            Trefoil => TRIANGLE.iter().map(|c| length([x - 0.5 * c[0], y - 0.5 * c[1]])).fold(f32::MAX, f32::min) - 0.43,
            Frame => (x.abs().max(y.abs()) - 0.64).abs() - (0.1 + 0.1 * proportion),
            Grid => cell[0].abs().min(cell[1].abs()) - (0.09 + 0.09 * proportion),
            Bricks => {
                let row = (y * 1.6 + 0.5).floor();
                let joint = nearest(x * 0.8 + 0.5 * (row - 2.0 * (row * 0.5).floor())).abs() / 0.8;
                joint.min(nearest(y * 1.6 + 0.5).abs() / 1.6) - (0.06 + 0.06 * proportion)
            }
            Waves => {
                let s = nearest(y * 0.5);
                stripe(x + 4.0 * s * (0.5 - s.abs()), proportion) * 0.8
            }
            Dashes => stripe(x, proportion).max(nearest(y * 0.6 + 0.5 * (x + 0.5).floor()).abs() / 0.6 - 0.5),
            Lattice => {
                TRIANGLE.iter().map(|n| nearest(n[0] * x + n[1] * y).abs()).fold(f32::MAX, f32::min) - (0.07 + 0.06 * proportion)
            }
            Target => stripe(length(p), proportion),
            Pluses => plus(cell, 0.4, 0.09 + 0.07 * proportion),
            Rings => (length(cell) - 0.3).abs() - (0.06 + 0.06 * proportion),
        }
    }
}

fn rectangle(p: Point, half_width: f32, half_height: f32) -> f32 {
    (p[0].abs() - half_width).max(p[1].abs() - half_height)
}

fn plus(p: Point, arm: f32, half_width: f32) -> f32 {
    rectangle(p, arm, half_width).min(rectangle(p, half_width, arm))
}

/// Normals of a triangle.
const TRIANGLE: [Point; 3] = [[0.0, -1.0], [0.866_025_4, 0.5], [-0.866_025_4, 0.5]];

/// Normals of a pentagon: sine and cosine of multiples of 72 degrees.
const PENTAGON: [Point; 5] =
    [[0.0, 1.0], [0.951_056_5, 0.309_017], [0.587_785_25, -0.809_017], [-0.587_785_25, -0.809_017], [-0.951_056_5, 0.309_017]];

/// How far `p` lies along each normal, the farthest first.
fn regular<const N: usize>(normals: [Point; N], p: Point) -> [f32; N] {
    let mut along = normals.map(|normal| normal[0] * p[0] + normal[1] * p[1]);
    along.sort_by(|a, b| b.total_cmp(a));
    along
}

/// Stripes of one unit's period.
fn stripe(x: f32, proportion: f32) -> f32 {
    nearest(x).abs() - (0.17 + 0.16 * proportion)
}

/// Offset from the nearest whole number, -0.5 to 0.5.
fn nearest(x: f32) -> f32 {
    x - (x + 0.5).floor()
}

fn length(p: Point) -> f32 {
    (p[0] * p[0] + p[1] * p[1]).sqrt()
}

fn mix(a: f32, b: f32, share: f32) -> f32 {
    a + (b - a) * share
}

fn blend(a: Colour, b: Colour, share: f32) -> Colour {
    std::array::from_fn(|channel| mix(a[channel], b[channel], share))
}

/// Uniform numbers from a ChaCha stream: one stream a picture, so that pictures do not depend on each other.
struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(stream);
        Self(generator)
    }

    /// From 0 to below 1, in steps of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / 16_777_216.0
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        mix(low, high, self.unit())
    }

    fn point(&mut self, reach: f32) -> Point {
        [self.between(-reach, reach), self.between(-reach, reach)]
    }

    /// A unit vector; every direction is equally likely.
    fn direction(&mut self) -> Point {
        loop {
            let p = self.point(1.0);
            let length = length(p);
            if (0.1..=1.0).contains(&length) {
                return [p[0] / length, p[1] / length];
            }
        }
    }

    fn colour(&mut self) -> Colour {
        [self.unit(), self.unit(), self.unit()]
    }

    /// Nearly normal, mean 0, deviation 1: the sum of four 16-bit numbers.
    fn noise(&mut self) -> f32 {
        let word = self.0.next_u64();
        let sum: u64 = (0..4).map(|part| (word >> (16 * part)) & 0xffff).sum();
        (sum as f32 / 65_536.0 - 2.0) * 1.732_050_8
    }
}

/// A coordinate system laid over the picture, whose own runs from -1 to 1.
struct Placement {
    centre: Point,
    axis: Point,
    unit: f32,
}

impl Placement {
    fn local(&self, p: Point) -> Point {
        let [x, y] = [p[0] - self.centre[0], p[1] - self.centre[1]];
        [(x * self.axis[0] + y * self.axis[1]) / self.unit, (y * self.axis[0] - x * self.axis[1]) / self.unit]
    }
}

/// A short line across the backdrop.
struct Stroke {
    placement: Placement,
    half_width: f32,
    colour: Colour,
}

/// Lattice of the smooth noise: points along a side.
const LATTICE: usize = 6;

struct Scene {
    figure: Figure,
    placement: Placement,
    proportion: f32,
    ink: [Colour; 2],
    paper: [Colour; 2],
    slope: Point,
    relief: [f32; LATTICE * LATTICE],
    strokes: Vec<Stroke>,
    light: Point,
    noise: f32,
}

impl Scene {
    fn new(figure: Figure, random: &mut Random) -> Self {
        let placement = if figure.is_texture() {
            Placement { centre: random.point(1.0), axis: random.direction(), unit: random.between(0.24, 0.55) }
        } else {
            let unit = random.between(0.36, 0.72);
            Placement { centre: random.point(1.0 - 0.9 * unit), axis: random.direction(), unit }
        };
        let (paper, ink) = contrasting(random);
        let vary =
            |random: &mut Random, colour: Colour| colour.map(|value| (value + random.between(-0.15, 0.15)).clamp(0.0, 1.0));
        let strokes = random.0.next_u32() % 4;
        Self {
            figure,
            placement,
            proportion: random.unit(),
            ink: [ink, vary(random, ink)],
            paper: [paper, vary(random, paper)],
            slope: random.direction(),
            relief: std::array::from_fn(|_| random.unit()),
            strokes: (0..strokes)
                .map(|_| Stroke {
                    placement: Placement { centre: random.point(0.9), axis: random.direction(), unit: random.between(0.1, 0.4) },
                    half_width: random.between(0.02, 0.06),
                    colour: vary(random, paper),
                })
                .collect(),
            light: random.point(0.25),
            noise: random.between(0.01, 0.06),
        }
    }

    /// Colour at `p`, before noise. `pixel` is the width of a pixel: edges are that soft.
    fn colour(&self, p: Point, pixel: f32) -> Colour {
        let cover = |distance: f32| (0.5 - distance / pixel).clamp(0.0, 1.0);
        let ramp = (0.5 + 0.35 * (p[0] * self.slope[0] + p[1] * self.slope[1])).clamp(0.0, 1.0);
        let relief = self.relief(p);
        let figure = cover(self.figure.distance(self.placement.local(p), self.proportion) * self.placement.unit);
        let light = 1.0 + p[0] * self.light[0] + p[1] * self.light[1];
        let mut colour = blend(self.paper[0], self.paper[1], mix(ramp, relief, 0.6));
        for stroke in &self.strokes {
            let [along, across] = stroke.placement.local(p);
            let unit = stroke.placement.unit;
            colour =
                blend(colour, stroke.colour, cover(((along.abs() - 1.0) * unit).max(across.abs() * unit - stroke.half_width)));
        }
        blend(colour, blend(self.ink[0], self.ink[1], ramp), figure).map(|value| value * light)
    }

    /// Smooth noise at `p`, 0 to 1.
    fn relief(&self, p: Point) -> f32 {
        let [(column, across), (row, down)] = p.map(|value| {
            let place = (value * 0.5 + 0.5).clamp(0.0, 1.0) * (LATTICE - 1) as f32;
            let cell = (place as usize).min(LATTICE - 2);
            let part = place - cell as f32;
            (cell, part * part * (3.0 - 2.0 * part))
        });
        let at = |row: usize, column: usize| self.relief[row * LATTICE + column];
        let upper = mix(at(row, column), at(row, column + 1), across);
        let lower = mix(at(row + 1, column), at(row + 1, column + 1), across);
        mix(upper, lower, down)
    }
}

/// Two colours whose brightness differs, either one the brighter.
fn contrasting(random: &mut Random) -> (Colour, Colour) {
    let brightness = |colour: Colour| 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2];
    loop {
        let (a, b) = (random.colour(), random.colour());
        if (brightness(a) - brightness(b)).abs() >= 0.3 {
            return (a, b);
        }
    }
}

/// Draws one picture into `pixels`: RGB, `side * side` of them, row by row.
pub(super) fn draw(figure: Figure, seed: u64, stream: u64, side: u32, pixels: &mut [u8]) {
    let random = &mut Random::new(seed, stream);
    let scene = Scene::new(figure, random);
    let pixel = 2.0 / side as f32;
    let place = |index: usize| (index as f32 + 0.5) * pixel - 1.0;
    for (row, line) in pixels.chunks_exact_mut(side as usize * 3).enumerate() {
        for (column, rgb) in line.chunks_exact_mut(3).enumerate() {
            let colour = scene.colour([place(column), place(row)], pixel);
            for (byte, value) in rgb.iter_mut().zip(colour) {
                *byte = ((value + scene.noise * random.noise()) * 255.0 + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }
}
