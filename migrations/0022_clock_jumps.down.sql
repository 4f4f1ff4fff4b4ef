DROP TABLE clock_jumps;
