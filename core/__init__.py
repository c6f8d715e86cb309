"""The parts of every algorithm: types, networks, replay, learners, policies, loops."""
