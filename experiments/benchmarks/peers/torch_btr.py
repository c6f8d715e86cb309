"""Learner steps a second of Beyond the Rainbow in torch: SECONDS each, of batches of BATCH.

The step of the paper (arXiv 2411.03820), written for this measurement: IMPALA's torso twice as
wide, spectral normalisation by torch's own parametrisation, 8 implicit quantiles, two noisy
streams, Munchausen's bonus of the online network, Adam with clipped gradients.
"""

import json
import os
import sys

import torch
from rate import best_rate

ACTIONS, QUANTILES, COSINES, HIDDEN, FEATURES = 6, 8, 64, 512, 36 * 64
TAU, ALPHA, FLOOR, DISCOUNT = 0.03, 0.9, -1.0, 0.997**3

nn, functional = torch.nn, torch.nn.functional


class Unit(nn.Module):
    """A residual unit of two convolutions, normalised by their largest singular values."""

    def __init__(self, channels):
        super().__init__()
        normalised = nn.utils.parametrizations.spectral_norm
        self.convolutions = nn.ModuleList(
            normalised(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)
        )

    def forward(self, x):
        """Maps [B, C, H, W] to the same."""
        first, second = self.convolutions
        return x + second(torch.relu(first(torch.relu(x))))


def torso():
    """Makes the torso, [B, 4, 84, 84] -> [B, 2304]."""
    layers, inputs = [], 4
    for channels in (32, 64, 64):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
        layers += [Unit(channels), Unit(channels)]
        inputs = channels
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveMaxPool2d(6), nn.Flatten())


class Noisy(nn.Module):
    """A dense layer with factorised noise, drawn by `draw`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.mean = nn.Linear(inputs, outputs)
        self.spread = nn.ParameterList(
            nn.Parameter(torch.full(shape, 0.5 / inputs**0.5))
            for shape in ((outputs, inputs), (outputs,))
        )
        self.draw()

    def draw(self):
        """Draws new noise, one for all rows."""
        inputs, outputs = self.mean.in_features, self.mean.out_features
        noise = (torch.randn(size, device=self.mean.weight.device) for size in (inputs, outputs))
        self.noise = [x.sign() * x.abs().sqrt() for x in noise]

    def forward(self, x):
        """Maps [..., inputs] to [..., outputs]."""
        (w, b), (of_inputs, of_outputs) = self.spread, self.noise
        weight = self.mean.weight + w * torch.outer(of_outputs, of_inputs)
        return functional.linear(x, weight, self.mean.bias + b * of_outputs)


class Network(nn.Module):
    """Quantiles of both streams at fractions that each pass draws."""

    def __init__(self):
        super().__init__()
        self.torso = torso()
        self.embedding = nn.Linear(COSINES, FEATURES)
        self.streams = nn.ModuleList(
            nn.Sequential(Noisy(FEATURES, HIDDEN), nn.ReLU(), Noisy(HIDDEN, outputs))
            for outputs in (1, ACTIONS)
        )

    def draw(self):
        """Draws the noise of all layers."""
        for layer in self.modules():
            if isinstance(layer, Noisy):
                layer.draw()

    def forward(self, features):
        """Maps features [B, D] to quantiles [B, N, A] and their fractions [B, N]."""
        fractions = torch.rand(len(features), QUANTILES, device=features.device)
        frequencies = torch.pi * torch.arange(COSINES, device=features.device)
        waves = torch.cos(fractions[:, :, None] * frequencies)
        x = features[:, None] * torch.relu(self.embedding(waves))
        value, advantages = (stream(x) for stream in self.streams)
        return value + advantages - advantages.mean(2, keepdim=True), fractions


def munchausen_target(z_t, q_tm1, a_tm1, r_t, discount_t):
    """Returns what quantiles regress to, [B, N']."""
    log_pi_t = torch.log_softmax(z_t.mean(1) / TAU, 1)
    v_t = (log_pi_t.exp()[:, None] * (z_t - TAU * log_pi_t[:, None])).sum(2)
    log_pi_tm1 = torch.log_softmax(q_tm1 / TAU, 1)
    bonus = (TAU * log_pi_tm1).gather(1, a_tm1).clamp(FLOOR, 0)
    return r_t + ALPHA * bonus + discount_t * v_t


def stepper(batch, layout, device):
    """Makes a function that does one step."""
    online, target = (Network().to(device).to(memory_format=layout) for _ in range(2))
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), 1e-4, eps=0.005 / 256)

    def observations():
        frames = torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8, device=device)
        return frames.to(memory_format=layout)

    o_tm1, o_t = observations(), observations()
    a_tm1 = torch.randint(0, ACTIONS, (batch, 1), device=device)
    r_t, weights = (torch.ones(shape, device=device) for shape in ((batch, 1), (batch,)))
    priorities = []

    def step():
        online.draw()
        target.draw()
        features = online.torso(o_tm1.float() / 255)
        with torch.no_grad():
            z_t, _ = target(target.torso(o_t.float() / 255))
            q_tm1 = online(features)[0].mean(1)
            y = munchausen_target(z_t, q_tm1, a_tm1, r_t, DISCOUNT * r_t)
        z_tm1, fractions = online(features)
        z_a_tm1 = z_tm1.gather(2, a_tm1[:, None].expand(-1, QUANTILES, 1))  # [B, N, 1]
        delta = y[:, None] - z_a_tm1  # [B, N, N']
        huber = torch.where(delta.abs() <= 1, 0.5 * delta.square(), delta.abs() - 0.5)
        losses = ((fractions[:, :, None] - (delta < 0).float()).abs() * huber).mean(2).sum(1)
        optimizer.zero_grad()
        (weights * losses).mean().backward()
        nn.utils.clip_grad_norm_(online.parameters(), 10.0)
        optimizer.step()
        priorities[:] = [delta.detach().abs().mean(2).sum(1).cpu()]  # Waits for the device.
        return 1

    return step, online


def main():
    """Prints rates by layout, and the number of the network's parameters without spreads."""
    seconds, batch = float(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    rates = {}
    for name, layout in layouts.items():
        step, online = stepper(batch, layout, device)
        step()
        rates[f"torch {name}"] = best_rate(step, seconds)
        leaves = (x.numel() for n, x in online.named_parameters() if "spread" not in n)
        rates["parameters"] = sum(leaves)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
