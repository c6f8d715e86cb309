"""Gradient steps a second of DQN and M-DQN in torch, in both layouts: SECONDS each."""

import json
import os
import sys

import torch
from rate import best_rate

BATCH, ACTIONS = 32, 6
TAU, ALPHA, FLOOR = 0.03, 0.9, -1.0


def network():
    """Makes the network of Mnih et al. 2015."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, ACTIONS),
    )


def stepper(munchausen, layout):
    """Makes a function that does one step."""
    online, target = network().to(memory_format=layout), network().to(memory_format=layout)
    optimizer = torch.optim.Adam(online.parameters(), 5e-5, eps=0.01 / 32)

    def observations():
        frames = torch.randint(0, 256, (BATCH, 4, 84, 84), dtype=torch.uint8)
        return frames.to(memory_format=layout)

    o_tm1, o_t = observations(), observations()
    a_tm1 = torch.randint(0, ACTIONS, (BATCH, 1))
    r_t, discount_t = torch.ones(BATCH), 0.99 * torch.ones(BATCH)

    def values(net, frames):
        return net(frames.float() / 255)

    def step():
        with torch.no_grad():
            q_t = values(target, o_t)
            if munchausen:
                log_pi_t = torch.log_softmax(q_t / TAU, 1)
                v_t = (log_pi_t.exp() * (q_t - TAU * log_pi_t)).sum(1)
                log_pi_tm1 = torch.log_softmax(values(target, o_tm1) / TAU, 1)
                bonus = (TAU * log_pi_tm1).gather(1, a_tm1)[:, 0].clamp(FLOOR, 0)
                y = r_t + ALPHA * bonus + discount_t * v_t
            else:
                y = r_t + discount_t * q_t.max(1).values
        q_a_tm1 = values(online, o_tm1).gather(1, a_tm1)[:, 0]
        loss = torch.nn.functional.smooth_l1_loss(q_a_tm1, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        return 1

    return step


def main():
    """Prints rates by algorithm and layout."""
    seconds = float(sys.argv[1])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    rates = {}
    for algorithm in ("m-dqn", "dqn"):
        for name, layout in layouts.items():
            step = stepper(algorithm == "m-dqn", layout)
            for _ in range(10):
                step()
            rates[f"{algorithm} {name}"] = best_rate(step, seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
